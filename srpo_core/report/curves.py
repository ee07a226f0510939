"""Curves over steps: DVCLive's training log, and the figures of the checkpoints."""

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import require
from srpo_core.errors import ArtifactError
from srpo_core.report.charts import Series

TRAIN_PLOTS = Path("plots/metrics/train")
DROPPED: Final = "dropped early, with fewer prompts"


def training_panels(log: Path) -> dict[str, list[Series]]:
    """Read the training's figures by panel; `reward_denoise` and `reward_inversion` share the panel `reward`.

    Raises:
        ArtifactError: the log is missing, empty or damaged.
    """
    files = sorted(require(log / TRAIN_PLOTS).glob("*.tsv"))
    if not files:
        raise ArtifactError(
            f"{log / TRAIN_PLOTS} contains no *.tsv: run 'dvc repro --force -s train' to log anew"
        )
    names = [file.stem for file in files]
    families = {name: name.partition("_")[0] for name in names}
    panels: dict[str, list[Series]] = {}
    for file in files:
        family = families[file.stem]
        shared = list(families.values()).count(family) > 1
        line = Series(file.stem.partition("_")[2] or file.stem if shared else file.stem, _read_points(file))
        if line.points:
            panels.setdefault(family if shared else file.stem, []).append(line)
    return panels


def checkpoint_panels(
    curve: Sequence[Mapping[str, Any]], order: Sequence[str], dropped: Collection[int] = ()
) -> dict[str, list[Series]]:
    """Collect each metric over the checkpoints of select's curve; metrics in `order` come first.

    dropped: the steps of checkpoints with images of fewer prompts than the others, which are a line of their own.
    """
    names = dict.fromkeys(name for row in curve for name in row if name != "step")
    ordered = [name for name in order if name in names] + [name for name in names if name not in order]
    panels = {}
    for name in ordered:
        rows = [row for row in curve if _is_number(row.get(name))]
        lines = [
            Series(what, sorted((float(row["step"]), float(row[name])) for row in own))
            for what, own in (
                (name, [row for row in rows if row["step"] not in dropped]),
                (DROPPED, [row for row in rows if row["step"] in dropped]),
            )
            if own
        ]
        if lines:
            panels[name] = lines
    return panels


def _read_points(file: Path) -> list[tuple[float, float]]:
    """Read the points of a DVCLive file: the column `step`, and the last column, which has the metric's name."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        points = [(float(row["step"]), float(list(row.values())[-1])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file} is damaged ({error!r}): run 'dvc repro --force -s train'") from None
    return [(step, value) for step, value in points if math.isfinite(value)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
