"""Scorers: models that look at an image, as rewards (differentiable) or as judges.

To add one: a file that offers `load(path)`, and a line in `SCORERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from srpo_core.config import ScorerSettings
from srpo_core.errors import ConfigError, pick
from srpo_core.protocols import Judge, RewardModel
from srpo_core.scorers.clip_score import load_clip_score
from srpo_core.scorers.hps_v2 import load_hps_v2
from srpo_core.scorers.judge import load_style_subject_judge
from srpo_core.scorers.open_clip import load_open_clip
from srpo_core.scorers.pick_score import load_pick_score
from srpo_core.scorers.timm_judge import load_timm_judge


@dataclass(frozen=True)
class ScorerEntry:
    """One entry of the registry `scorers`.

    load: from a directory of weights to a `RewardModel` (differentiable) or a `Judge` (not).
    range: least and greatest score, or probability of a judge.
    licence: of the weights where they are published, else of the code that reads them (SPDX).
    source: the weights' id on the hub, or the library of the architecture, and the paper where there is one.
    """

    load: Callable[[Path], Any]
    differentiable: bool
    range: tuple[float, float]
    licence: str
    source: str


SCORERS: Final[Mapping[str, ScorerEntry]] = MappingProxyType(
    {
        "hps_v2": ScorerEntry(
            load_hps_v2,
            differentiable=True,
            range=(-1, 1),
            licence="Apache-2.0",
            source="xswu/HPSv2 (HPS_v2.1_compressed.pt), arXiv 2306.09341",
        ),
        "pick_score": ScorerEntry(
            load_pick_score,
            differentiable=True,
            range=(-5, 5),  # exp(logit_scale) is at most 100, over 20
            licence="MIT",
            source="yuvalkirstain/PickScore_v1, arXiv 2305.01569",
        ),
        "clip_score": ScorerEntry(
            load_clip_score,
            differentiable=True,
            range=(-100, 100),
            licence="MIT",
            source="openai/clip-vit-large-patch14, arXiv 2104.08718",
        ),
        "open_clip": ScorerEntry(
            load_open_clip,
            differentiable=True,
            range=(-1, 1),
            licence="MIT",
            source="open_clip, any configuration with a text and a vision tower",
        ),
        "style_subject_judge": ScorerEntry(
            load_style_subject_judge,
            differentiable=False,
            range=(0, 1),
            licence="Apache-2.0",
            source="assets/tiny/recipe",
        ),
        "timm_judge": ScorerEntry(
            load_timm_judge,
            differentiable=False,
            range=(0, 1),
            licence="Apache-2.0",
            source="timm, any network of features; assets/tiny/recipe",
        ),
    }
)


def load_scorer(settings: ScorerSettings) -> Any:
    """Load the scorer that `settings` name: a `RewardModel` if differentiable, else a `Judge`.

    Raises:
        ConfigError: the registry has no such scorer.
        ArtifactError: its files are missing or damaged.
    """
    return pick(SCORERS, settings.scorer, "scorer").load(Path(settings.path))


def load_reward(settings: ScorerSettings) -> RewardModel:
    """Load a differentiable scorer; another kind is a `ConfigError`. See `load_scorer`."""
    _require_kind(settings, differentiable=True)
    return cast(RewardModel, load_scorer(settings))


def load_judge(settings: ScorerSettings) -> Judge:
    """Load a scorer that judges; a differentiable one is a `ConfigError`. See `load_scorer`."""
    _require_kind(settings, differentiable=False)
    return cast(Judge, load_scorer(settings))


def _require_kind(settings: ScorerSettings, *, differentiable: bool) -> None:
    if pick(SCORERS, settings.scorer, "scorer").differentiable is differentiable:
        return
    known = ", ".join(name for name, entry in SCORERS.items() if entry.differentiable is differentiable)
    kind = "a reward (differentiable)" if differentiable else "a judge (not differentiable)"
    raise ConfigError(f"scorer {settings.scorer!r} cannot serve as {kind}: known are {known}")
