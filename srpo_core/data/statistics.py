"""Statistics of preference data."""

from collections import Counter
from pathlib import Path

from srpo_core import artifacts


def count_rows(root: Path) -> dict[str, dict[str, int]]:
    """Count the rows that stage ingest wrote below `root`: `prompts` and `pairs` by split, `styles` of the test prompts.

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    prompts = artifacts.read_table(root / artifacts.PROMPTS)
    pairs = artifacts.read_table(root / artifacts.PAIRS)
    styles = Counter(style for style in prompts["style"].to_pylist() if style)
    return {
        "prompts": _sorted(Counter(prompts["split"].to_pylist())),
        "styles": _sorted(styles),
        "pairs": _sorted(Counter(pairs["split"].to_pylist())),
    }


def _sorted(counts: "Counter[str]") -> dict[str, int]:
    return dict(sorted(counts.items()))
