"""Publish small releases from runs of the stand-in, whose files are no model. All that happens to them later is real."""

import os
from pathlib import Path
from typing import Any

from small_release import publish_small

from srpo_core.release import aliases, publishing
from srpo_core.storage import Store

ROOT = Path(__file__).resolve().parents[1]
# name, metric, against, compare, side, margin, value and half of the interval: invented
_RULES = (
    ("style_gained", "judge_wanted", "base", "difference", "at_least", 0.05, 0.217, 0.085),
    ("style_wins", "judge_wanted", "base", "win_rate", "at_least", 0.5, 0.633, 0.065),
    ("subject_kept", "judge_top5", "base", "difference", "at_least", -0.15, 0.0, 0.089),
    ("diversity_kept", "diversity", "base", "ratio", "at_least", 0.3, 0.787, 0.206),
    ("few_broken", "broken", "absolute", "share", "at_most", 0.05, 0.0, 0.012),
    ("champion_style", "judge_wanted", "champion", "difference", "at_least", -0.1, 0.041, 0.052),
)
_KEYS = ("name", "metric", "against", "compare", "side", "margin")


def publish(store: Store, *, root: Path, why: str, cost: Any) -> publishing.Published:
    """Publish the next of the versions tiny-1, tiny-2 and so on, with images and figures, and make it the candidate."""
    assert (root / "runs/gate/decision.json").is_file(), "the gate decides before anything is published"
    number = len(store.versions()) + 1
    rules = [
        dict(zip(_KEYS, rule[:6], strict=True))
        | {"verdict": "holds", "value": rule[6] + number / 100}
        | {"low": rule[6] + number / 100 - rule[7], "high": rule[6] + number / 100 + rule[7]}
        for rule in _RULES
        if number > 1 or rule[2] != "champion"
    ]
    sources = Path(os.environ["SRPO_STORE"]).parent
    images = {"grid.png": (ROOT / "docs/grid.png").read_bytes(), "report.html": b"<h1>Report</h1>"}
    version = publish_small(store, sources, number, rules=rules, more=images)
    before = aliases.move_alias(store, "tiny/candidate", version, why=why)
    return publishing.Published(version, f"{store.uri}/{version}", True, "tiny/candidate", before)


def install() -> None:
    """Replace the publishing of this process."""
    publishing.publish = publish  # type: ignore[assignment]
