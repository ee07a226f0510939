"""Direct-Align with an absolute reward: without the relative term and its unwanted control word."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from srpo_core.algorithm.direct_align import EDGE, branches, step_length
from srpo_core.algorithm.method import LossTerm, MethodCost, TrainBatch
from srpo_core.algorithm.reward import absolute_reward, by_name, hinge_loss, with_control_word
from srpo_core.algorithm.rollout import starting_images
from srpo_core.algorithm.srpo import draw_midpoints, recovered_images
from srpo_core.config import TrainSettings
from srpo_core.protocols import BaseModel, RewardModel


def direct_align(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Maximize the reward of the image that the denoise branch recovers at one noise level.

    Shen et al. 2025, section 3.2; section 3.3 turns it into SRPO.
    """
    x0, eps = starting_images(model, batch, settings)
    align = settings.direct_align
    for midpoints in draw_midpoints(batch.draws, settings):
        branch = branches(midpoints, align.grid, align.ratio)["denoise"]
        images = recovered_images(model, x0, eps, batch.condition, branch, settings)
        yield scored(reward, images, batch, settings, weight=1 / settings.pairs_per_rollout)


def direct_align_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `direct_align`: one per pair, by the denoise branch alone."""
    return _denoise_cost(settings, noise_levels=settings.pairs_per_rollout)


def direct_align_aggregated(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Maximize the sum of the rewards at consecutive noise levels of one image, weighted by a decaying lambda.

    The weight decreases towards the clean end, where reward hacking is easiest.
    Shen et al. 2025, section 3.2, the aggregated reward.
    """
    x0, eps = starting_images(model, batch, settings)
    align = settings.direct_align
    weights = decaying_weights(settings.aggregate.levels, settings.aggregate.decay)
    for first in draw_midpoints(batch.draws, settings):
        for level, weight in enumerate(weights):
            midpoints = consecutive(first, level, len(weights), step_length(align.grid, align.ratio))
            branch = branches(midpoints, align.grid, align.ratio)["denoise"]
            images = recovered_images(model, x0, eps, batch.condition, branch, settings)
            yield scored(reward, images, batch, settings, weight=weight / settings.pairs_per_rollout)


def direct_align_aggregated_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `direct_align_aggregated`: one per noise level of each pair."""
    return _denoise_cost(settings, noise_levels=settings.pairs_per_rollout * settings.aggregate.levels)


def decaying_weights(levels: int, decay: float) -> list[float]:
    """Return the weight lambda of each level, starting with the noisiest: 1, decay, decay², and so on."""
    return [decay**level for level in range(levels)]


def consecutive(midpoints: Sequence[int], level: int, levels: int, usual: int) -> list[int]:
    """Return the `level`-th of `levels` midpoints from each first one towards the clean end.

    They are `usual` grid points apart, or less where the last one would leave the grid.
    """
    room = max(levels - 1, 1)
    return [m - level * min(usual, (m - EDGE) // room) for m in midpoints]


def scored_texts(batch: TrainBatch, settings: TrainSettings) -> list[str]:
    """Return the texts with which an absolute reward compares the images."""
    if settings.reward_text == "wanted":
        return with_control_word(batch.wanted, batch.prompts)
    return list(batch.prompts)


def scored(
    reward: RewardModel, images: Tensor, batch: TrainBatch, settings: TrainSettings, *, weight: float
) -> LossTerm:
    """Return the loss term of images (B, 3, H, W) in [0, 1] under the absolute reward."""
    rewards = absolute_reward(reward, images, scored_texts(batch, settings))
    losses = hinge_loss(rewards.total, settings.direct_align.margin) * weight
    return LossTerm(losses, by_name(settings.reward_text, rewards))


def _denoise_cost(settings: TrainSettings, *, noise_levels: int) -> MethodCost:
    return MethodCost(
        rollout_calls=settings.rollout.num_inference_steps,
        trained_calls=noise_levels,
        recomputed_calls=0,
        scored_images=noise_levels,
        noise_levels=noise_levels,
    )
