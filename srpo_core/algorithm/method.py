"""What a training method is given and what it yields."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from srpo_core.config import TrainSettings
from srpo_core.protocols import BaseModel, Condition, RewardModel
from srpo_core.randomness import Draws


@dataclass(frozen=True)
class TrainBatch:
    """What one step trains on.

    noise: (B, S, C), both the start of the rollout and the noise injected; draws: any further random
    numbers; real: packed latents (S, C) of the rows whose image is not drawn but real; wanted,
    unwanted: the control words of this step.
    """

    prompts: Sequence[str]
    condition: Condition
    noise: Tensor
    draws: Draws
    real: Mapping[int, Tensor]
    wanted: str
    unwanted: str


@dataclass(frozen=True)
class LossTerm:
    """One term of a step's loss; the terms of a step are meant to be summed.

    losses: (B,) per sample, with gradients; rewards: (B,) by the name of what was scored, without.
    """

    losses: Tensor
    rewards: Mapping[str, Tensor]


class Method(Protocol):
    """How a step's loss is made: yields terms one by one, so that one graph is alive at a time."""

    def __call__(
        self, model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
    ) -> Iterator[LossTerm]:
        """Yield the terms; the caller runs backward on each before it asks for the next."""
        ...


@dataclass(frozen=True)
class MethodEntry:
    """One entry of the registry `methods`.

    real_images: whether it can start from real images; otherwise `train.rollout.source` must be online.
    """

    run: Method
    real_images: bool
