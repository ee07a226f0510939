"""SRPO: Direct-Align with the relative reward, as one training step's loss terms."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from srpo_core.algorithm.direct_align import EDGE, Branch, branches, one_step_recovery
from srpo_core.algorithm.method import LossTerm, MethodCost, TrainBatch
from srpo_core.algorithm.reference import arithmetic_of
from srpo_core.algorithm.reward import Rewards, by_name, hinge_loss, relative_reward, with_control_word
from srpo_core.algorithm.rollout import starting_images
from srpo_core.algorithm.schedule import training_grid
from srpo_core.config import BranchName, DirectAlignSettings, TrainSettings
from srpo_core.protocols import BaseModel, Condition, RewardModel
from srpo_core.randomness import Draws


def srpo(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Move images towards the wanted and away from the unwanted control word.

    The denoise branch maximizes the reward of the wanted word. The inversion branch steps back towards noise, which
    reverses the sign of the gradient, and the two words are exchanged. So both branches push the model in the same
    direction, and the part of the reward that does not depend on the word cancels.
    Shen et al. 2025, sections 3.2 and 3.3.
    """
    x0, eps = starting_images(model, batch, settings)
    align = settings.direct_align
    share = 1 / (len(align.branches) * settings.pairs_per_rollout)
    # one call for all branches is faster; a call per branch needs less memory
    calls = [align.branches] if settings.batch_branches else [[name] for name in align.branches]
    for midpoints in draw_midpoints(batch.draws, settings):
        at = branches(midpoints, align.grid, align.ratio)
        for names in calls:
            branch = Branch.joined([at[name] for name in names])
            rows = [row for _ in names for row in range(len(x0))]
            images = recovered_images(model, x0[rows], eps[rows], batch.condition[rows], branch, settings)
            positive, negative = control_texts(batch, names)
            k = torch.cat([discounts(align, name)[at[name].discount] for name in names]).to(x0.device)
            rewards = relative_reward(reward, images, positive, negative, k)
            losses = hinge_loss(rewards.total, align.margin) * share
            yield LossTerm(losses.view(len(names), -1).sum(0), _mean_by_branch(names, rewards))


def srpo_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `srpo`: a pair is one call per branch."""
    num_branches = len(settings.direct_align.branches)
    calls = settings.pairs_per_rollout * num_branches
    return MethodCost(
        rollout_calls=settings.rollout.num_inference_steps,
        trained_calls=calls,
        recomputed_calls=0,
        scored_images=calls,
        noise_levels=settings.pairs_per_rollout,
        images_per_call=num_branches if settings.batch_branches else 1,
    )


def draw_midpoints(draws: Draws, settings: TrainSettings) -> Iterator[list[int]]:
    """Draw a midpoint per sample for each of the pairs that share a rollout."""
    for pair in range(settings.pairs_per_rollout):
        yield draws.integers(("midpoint", pair), EDGE, settings.direct_align.grid - EDGE)


def recovered_images(
    model: BaseModel, x0: Tensor, eps: Tensor, condition: Condition, branch: Branch, settings: TrainSettings
) -> Tensor:
    """Return the images (B, 3, H, W) in [0, 1] that one model call recovers at a branch's noise levels."""
    align = settings.direct_align
    grid = training_grid(align.schedule_steps, settings.rollout.shift, align.first, align.last, align.grid)
    recovered = one_step_recovery(
        model.velocity,
        x0,
        eps,
        condition,
        s=grid[branch.s].to(x0.device),
        t=grid[branch.t].to(x0.device),
        guidance=align.guidance_scale,
        arithmetic=arithmetic_of(branch, settings),
    )
    return model.decode(recovered).clamp(0, 1)


def control_texts(batch: TrainBatch, names: Sequence[BranchName]) -> tuple[list[str], list[str]]:
    """Return positive and negative texts of all samples, branch by branch; the inversion branch exchanges them."""
    wanted = with_control_word(batch.wanted, batch.prompts)
    unwanted = with_control_word(batch.unwanted, batch.prompts)
    positive = {"denoise": wanted, "inversion": unwanted}
    negative = {"denoise": unwanted, "inversion": wanted}
    return [t for n in names for t in positive[n]], [t for n in names for t in negative[n]]


def discounts(align: DirectAlignSettings, name: BranchName) -> Tensor:
    """Return a branch's discount k at each grid point, (points,), from the clean to the noisy end."""
    ends = {"denoise": align.discount_denoise, "inversion": align.discount_inversion}[name]
    return torch.linspace(*ends, align.grid)


def _mean_by_branch(names: Sequence[BranchName], rewards: Rewards) -> dict[str, Tensor]:
    """Average rewards over the calls of each branch, by the branch's name; see `by_name`."""

    def mean(values: Tensor, name: BranchName) -> Tensor:
        chunks = zip(names, values.chunk(len(names)), strict=True)
        return torch.stack([own for other, own in chunks if other == name]).mean(0)

    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(names):
        each = {one: mean(values, name) for one, values in rewards.each.items()}
        found |= by_name(name, Rewards(mean(rewards.total, name), each))
    return found
