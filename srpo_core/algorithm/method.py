"""The interface of a training method: its inputs, the loss terms that it yields, and its registry entry."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from srpo_core.config import TrainSettings
from srpo_core.protocols import BaseModel, Condition, RewardModel
from srpo_core.randomness import Draws


@dataclass(frozen=True)
class TrainBatch:
    """The samples of one step.

    noise: (B, S, C), both the start of the rollout and the noise to inject; draws: all further random numbers; given:
    packed latents (S, C) of the rows that start from a real or cached image instead of a rollout; wanted, unwanted: the
    control words of this step.
    """

    prompts: Sequence[str]
    condition: Condition
    noise: Tensor
    draws: Draws
    given: Mapping[int, Tensor]
    wanted: str
    unwanted: str

    def part(self, start: int, stop: int) -> "TrainBatch":
        """Return the samples in places start … stop-1, with the random numbers that they have in the whole batch."""
        rows = slice(start, stop)
        return replace(
            self,
            prompts=self.prompts[rows],
            condition=self.condition[rows],
            noise=self.noise[rows],
            draws=replace(self.draws, samples=self.draws.samples[rows]),
            given={place - start: image for place, image in self.given.items() if start <= place < stop},
        )


@dataclass(frozen=True)
class LossTerm:
    """One term of a step's loss, which is the sum of its terms.

    losses: (B,) per sample, with gradients; rewards: (B,) by name, without gradients; ends_update: whether the
    optimizer changes the weights before the next term is computed; False for the last term, after which it always does.
    """

    losses: Tensor
    rewards: Mapping[str, Tensor]
    ends_update: bool = False


class Method(Protocol):
    """Computes the loss of a step as terms, one at a time, so that only one graph is in memory.

    A method that makes several updates with one rollout ends each with a term that says so. Then its loss is the sum of
    the terms of each update.
    """

    def __call__(
        self, model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
    ) -> Iterator[LossTerm]:
        """Yield the terms; the caller runs backward on each one before it takes the next."""
        ...


@dataclass(frozen=True)
class MethodCost:
    """The model calls of one step per image of the batch, from which `srpo plan` computes FLOPs, memory and traffic.

    rollout_calls: transformer calls without gradients, none of them for a given image; trained_calls: transformer
    calls with gradients; recomputed_calls: forward passes that the method itself repeats in the backward pass;
    scored_images: images that are decoded and scored; noise_levels: noise levels that are trained; images_per_call,
    images_per_rollout_call: images of one sample that are in the same call with gradients, or without; updates: optimizer
    updates; kept_latents: latents of the rollout that are kept until they are trained; reward_gradient: whether decoder
    and reward have a backward pass.
    """

    rollout_calls: int
    trained_calls: int
    recomputed_calls: int
    scored_images: int
    noise_levels: int
    images_per_call: int = 1
    images_per_rollout_call: int = 1
    updates: int = 1
    kept_latents: int = 0
    reward_gradient: bool = True


@dataclass(frozen=True)
class MethodEntry:
    """One entry of the registry `METHODS`.

    cost: the cost of a step under given settings, a `ConfigError` if the method cannot train with them; real_images: whether
    the method starts from finished images, and so from given ones, real or cached; otherwise it trains the sampler's own
    steps, and `train.rollout.source` must be online and `train.rollout.solver` euler.
    """

    run: Method
    cost: Callable[[TrainSettings], MethodCost]
    real_images: bool
