"""What a stage measured: figures/<stage>.json, kept in git beside the lock."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FIGURES: Final = Path("figures")


def write_figures(stage: str, figures: Mapping[str, Any]) -> None:
    """Keep the figures of a stage."""
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{stage}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def read_figures(stage: str, place: Path = FIGURES) -> dict[str, Any]:
    """The figures of a stage."""
    content: dict[str, Any] = json.loads((place / f"{stage}.json").read_text(encoding="utf-8"))
    return content
