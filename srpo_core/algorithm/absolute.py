"""Direct-Align with an absolute reward: no relative term, so no control word that pulls the other way."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from srpo_core.algorithm.direct_align import EDGE, branches, step_length
from srpo_core.algorithm.method import LossTerm, TrainBatch
from srpo_core.algorithm.reward import absolute_reward, hinge_loss, with_control_word
from srpo_core.algorithm.rollout import starting_images
from srpo_core.algorithm.srpo import drawn_midpoints, recovered_images
from srpo_core.config import TrainSettings
from srpo_core.protocols import BaseModel, RewardModel


def direct_align(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Maximize the reward of the image recovered at one noise level, by the denoise branch alone.

    Shen et al. 2025, section 3.2: what SRPO is without section 3.3.
    """
    x0, eps = starting_images(model, batch, settings)
    align = settings.direct_align
    for midpoints in drawn_midpoints(batch.draws, settings):
        branch = branches(midpoints, align.grid, align.ratio)["denoise"]
        images = recovered_images(model, x0, eps, batch.condition, branch, settings)
        yield scored(reward, images, batch, settings, weight=1 / settings.pairs_per_rollout)


def direct_align_aggregated(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Sum the reward over several consecutive noise levels of one image, weighted by a decaying lambda.

    The weight falls towards the clean end, where rewards are hacked most easily.
    Shen et al. 2025, section 3.2, the aggregated reward.
    """
    x0, eps = starting_images(model, batch, settings)
    align = settings.direct_align
    weights = decaying_weights(settings.aggregate.levels, settings.aggregate.decay)
    for first in drawn_midpoints(batch.draws, settings):
        for level, weight in enumerate(weights):
            midpoints = consecutive(first, level, len(weights), step_length(align.grid, align.ratio))
            branch = branches(midpoints, align.grid, align.ratio)["denoise"]
            images = recovered_images(model, x0, eps, batch.condition, branch, settings)
            yield scored(reward, images, batch, settings, weight=weight / settings.pairs_per_rollout)


def decaying_weights(levels: int, decay: float) -> list[float]:
    """The weight lambda of each level, from the noisiest on: 1, decay, decay² and so on."""
    return [decay**level for level in range(levels)]


def consecutive(midpoints: Sequence[int], level: int, levels: int, usual: int) -> list[int]:
    """The `level`-th of `levels` midpoints towards the clean end, a usual step apart, closer where it would be left."""
    room = max(levels - 1, 1)
    return [m - level * min(usual, (m - EDGE) // room) for m in midpoints]


def scored_texts(batch: TrainBatch, settings: TrainSettings) -> list[str]:
    """What an absolute reward compares the image with."""
    if settings.reward_text == "wanted":
        return with_control_word(batch.wanted, batch.prompts)
    return list(batch.prompts)


def scored(
    reward: RewardModel, images: Tensor, batch: TrainBatch, settings: TrainSettings, *, weight: float
) -> LossTerm:
    """The term of images (B, 3, H, W) in [0, 1] under the absolute reward."""
    rewards = absolute_reward(reward, images, scored_texts(batch, settings))
    losses = hinge_loss(rewards, settings.direct_align.margin) * weight
    return LossTerm(losses, {settings.reward_text: rewards.detach()})
