"""Statistics of preference data in HPDv2's layout."""

from pathlib import Path
from typing import Final

from srpo_core.data.hpd import DRAWBENCH, read_list

SPLITS: Final = ("train", "test")


def count_records(source: Path) -> dict[str, int]:
    """Count the records of `train.json` and `test.json`, and the prompts of the benchmark lists by style.

    The keys are `train`, `test` and `benchmark/<style>`.

    Raises:
        DataError: a file is missing or is not a JSON list.
    """
    lists = {split: source / f"{split}.json" for split in SPLITS}
    styles = sorted(path for path in source.glob("benchmark/*.json") if path.stem != DRAWBENCH)
    lists |= {f"benchmark/{path.stem}": path for path in styles}
    return {name: sum(1 for _ in read_list(path)) for name, path in lists.items()}
