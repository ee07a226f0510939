"""The registry `scorers`, and the functions that load an entry by the settings."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from srpo_core.config import RewardSettings, ScorerSettings, rewards_by_name
from srpo_core.errors import ArtifactError, ConfigError, pick
from srpo_core.protocols import RewardModel
from srpo_core.scorers.clip_score import CLIP_SCORE
from srpo_core.scorers.entry import ScorerEntry
from srpo_core.scorers.hps_v2 import HPS_V2
from srpo_core.scorers.judge import STYLE_SUBJECT_JUDGE
from srpo_core.scorers.mixed import MixedReward
from srpo_core.scorers.open_clip import OPEN_CLIP
from srpo_core.scorers.pick_score import PICK_SCORE
from srpo_core.scorers.timm_judge import TIMM_JUDGE
from srpo_core.weights.given_path import file_in_place_of_directory, what_is_missing

SCORERS: Final[Mapping[str, ScorerEntry]] = MappingProxyType(
    {
        "hps_v2": HPS_V2,
        "pick_score": PICK_SCORE,
        "clip_score": CLIP_SCORE,
        "open_clip": OPEN_CLIP,
        "style_subject_judge": STYLE_SUBJECT_JUDGE,
        "timm_judge": TIMM_JUDGE,
    }
)


def load_scorer(settings: ScorerSettings) -> Any:
    """Load the scorer that `settings` name: a `RewardModel` if it is differentiable, else a `Judge`.

    Raises:
        ConfigError: the registry has no such scorer.
        ArtifactError: its files are missing or damaged, or its path is no directory.
    """
    return pick(SCORERS, settings.scorer, "scorer").load(_directory(settings))


def load_reward(settings: ScorerSettings) -> RewardModel:
    """Load a differentiable scorer. Another kind is a `ConfigError`. See `load_scorer`."""
    return cast(RewardModel, _pick_reward(settings).load(_directory(settings)))


def _directory(settings: ScorerSettings) -> Path:
    """Return the directory of a scorer's files. Raises `ArtifactError` with what to give if there is none."""
    directory = Path(settings.path)
    needed = "the directory with a scorer's weights and configuration"
    if fault := what_is_missing(settings.path) or file_in_place_of_directory(directory, needed):
        raise ArtifactError(f"scorer {settings.scorer}: {fault}")
    return directory


def load_rewards(settings: Sequence[RewardSettings]) -> RewardModel:
    """Load the rewards of a run as one reward: their weighted sum. See `load_reward`."""
    return _mixed(settings, load_reward)


def build_rewards(settings: Sequence[RewardSettings]) -> RewardModel:
    """Build the rewards of a run, as `load_rewards` does, with random weights. See `build_reward`."""
    return _mixed(settings, build_reward)


def build_reward(settings: ScorerSettings) -> RewardModel:
    """Build a differentiable scorer with random weights on torch's default device. See `ScorerEntry.build`.

    Raises:
        ConfigError: the registry has no such scorer, or it is not differentiable.
        ArtifactError: its configuration is missing or damaged.
    """
    entry = _pick_reward(settings)
    assert entry.build is not None, "every differentiable scorer has one"
    return entry.build(Path(settings.path))


def _mixed(settings: Sequence[RewardSettings], make: Callable[[RewardSettings], RewardModel]) -> RewardModel:
    """Make each reward, and their weighted sum; a single reward of weight 1 is itself the sum."""
    if len(settings) == 1 and settings[0].weight == 1:
        return make(settings[0])
    several = len(settings) > 1
    named = {
        name.removeprefix("reward_") if several else one.scorer: one
        for name, one in rewards_by_name(settings).items()
    }
    weights = {name: one.weight for name, one in named.items()}
    return MixedReward({name: make(one) for name, one in named.items()}, weights)


def _pick_reward(settings: ScorerSettings) -> ScorerEntry:
    entry = pick(SCORERS, settings.scorer, "scorer")
    if not entry.differentiable:
        known = ", ".join(name for name, other in SCORERS.items() if other.differentiable)
        raise ConfigError(f"scorer {settings.scorer!r} is not differentiable: a reward is one of {known}")
    return entry
