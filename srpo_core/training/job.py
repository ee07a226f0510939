"""The description of a training run that every worker receives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from srpo_core.config import (
    ControlWords,
    ModelSettings,
    ResourceSettings,
    RewardSettings,
    ScorerSettings,
    TrainSettings,
)
from srpo_core.runtime.shared_files import Location

# names below `TrainJob.state`
PROGRESS: Final = "progress.jsonl"  # a line of figures per step, or {"note": what a user should know}
SAMPLES: Final = "samples"
REFRESHED: Final = "refreshed"  # images of cached pairs that the trained model has generated anew


@dataclass(frozen=True)
class TrainJob:
    """Everything that a worker needs to know.

    inputs: root of the relative paths in the settings and of the stages' outputs; digests: SHA-256 of the files
    that a worker on another machine has to download from there; state: location of checkpoints, samples and
    progress; base_images: directory of early stop's figures of the base, which later runs read; resume: number of steps of
    the checkpoint to resume from, 0 for none; attempt: unique name of this start of the workers.
    """

    inputs: Location
    digests: Mapping[str, str]
    state: Location
    base_images: Location
    seed: int
    model: ModelSettings
    rewards: Sequence[RewardSettings]
    select_judge: ScorerSettings
    control_words: ControlWords
    train: TrainSettings
    resources: ResourceSettings
    resume: int
    attempt: str
