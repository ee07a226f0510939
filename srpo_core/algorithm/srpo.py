"""SRPO: Direct-Align with the relative reward, as one training step's loss terms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from srpo_core.algorithm.direct_align import branches, one_step_recovery
from srpo_core.algorithm.reward import hinge_loss, relative_reward, with_control_word
from srpo_core.algorithm.rollout import rollout
from srpo_core.algorithm.schedule import shifted_sigmas, training_grid
from srpo_core.config import DirectAlignSettings, TrainSettings
from srpo_core.protocols import BaseModel, Condition, RewardModel


@dataclass(frozen=True)
class TrainBatch:
    """What one step trains on.

    noise: (B, S, C), both the start of the rollout and the noise injected; midpoints: B places on
    the training grid; wanted, unwanted: the control words of this step.
    """

    prompts: Sequence[str]
    condition: Condition
    noise: Tensor
    midpoints: Sequence[int]
    wanted: str
    unwanted: str


@dataclass(frozen=True)
class LossTerm:
    """One term of a step's loss; the terms of a step are meant to be summed.

    losses: (B,) per sample, with gradients; rewards: (B,), without.
    """

    name: str
    losses: Tensor
    rewards: Tensor


class Method(Protocol):
    """How a step's loss is made: yields terms one by one, so that one graph is alive at a time."""

    def __call__(
        self, model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
    ) -> Iterator[LossTerm]:
        """Yield the terms; the caller runs backward on each before it asks for the next."""
        ...


def discounts(ends: tuple[float, float], points: int) -> Tensor:
    """The discount k at each place of the grid, (points,), from the clean to the noisy end."""
    return torch.linspace(*ends, points)


def srpo(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Draw images, then pull each towards the wanted and away from the unwanted control word.

    The denoise branch maximizes the reward of the wanted word. The inversion branch steps back
    towards noise, which turns the sign of the gradient, and has the two words exchanged: both
    push the model the same way, and what the reward likes in any image cancels.
    Shen et al. 2025, sections 3.2 and 3.3.
    """
    roll, align = settings.rollout, settings.direct_align
    sigmas = shifted_sigmas(roll.steps, roll.shift)
    x0 = rollout(model.velocity, batch.noise, batch.condition, sigmas=sigmas, guidance=roll.guidance)
    yield from direct_align_terms(model, reward, x0, batch, align, shift=roll.shift)


def direct_align_terms(
    model: BaseModel,
    reward: RewardModel,
    x0: Tensor,
    batch: TrainBatch,
    align: DirectAlignSettings,
    *,
    shift: float,
) -> Iterator[LossTerm]:
    """The denoise and the inversion term for images x0 (B, S, C) and the noise that they came from."""
    grid = training_grid(align.schedule_steps, shift, align.first, align.last, align.grid)
    wanted = with_control_word(batch.wanted, batch.prompts)
    unwanted = with_control_word(batch.unwanted, batch.prompts)
    denoise, inversion = branches(batch.midpoints, align.grid, align.ratio)
    for branch, ends, positive, negative in (
        (denoise, align.discount_denoise, wanted, unwanted),
        (inversion, align.discount_inversion, unwanted, wanted),
    ):
        s, t = grid[branch.s].to(x0.device), grid[branch.t].to(x0.device)
        k = discounts(ends, align.grid)[branch.discount].to(x0.device)
        recovered = one_step_recovery(
            model.velocity, x0, batch.noise, batch.condition, s=s, t=t, guidance=align.guidance
        )
        images = model.decode(recovered).clamp(0, 1)
        rewards = relative_reward(reward, images, positive, negative, k)
        yield LossTerm(branch.name, hinge_loss(rewards, align.margin) / 2, rewards.detach())
