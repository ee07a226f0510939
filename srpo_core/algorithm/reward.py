"""The relative reward of SRPO: the same image is scored for a wanted and for an unwanted control word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from srpo_core.protocols import RewardMix, RewardModel


@dataclass(frozen=True)
class Rewards:
    """Rewards (B,) of images.

    total: what is maximized, with gradients; each: of a mix, the reward by each of its rewards alone, before its
    weight, without gradients.
    """

    total: Tensor
    each: Mapping[str, Tensor] = field(default_factory=dict)


def with_control_word(word: str, prompts: Sequence[str]) -> list[str]:
    """Put a control word before each prompt: "Ink. red apple"."""
    return [f"{word}. {prompt}" for prompt in prompts]


def relative_reward(
    reward: RewardModel, images: Tensor, positive: Sequence[str], negative: Sequence[str], k: Tensor
) -> Rewards:
    """Score images (B, 3, H, W) in [0, 1] for `positive` against `negative` texts.

    The reward is (1+k)·r(i, p) − r(i, n) with the score r and the discount k (B,). For a cosine it is
    <i, (1+k)·p − n>, the form of the reference implementation. Shen et al. 2025, section 3.3.
    """

    def relative(scores: Tensor) -> Tensor:
        wanted, unwanted = scores.chunk(2)
        return (1 + k) * wanted - unwanted

    scores = _score(reward, images, [*positive, *negative])
    return Rewards(relative(scores.total), {name: relative(one) for name, one in scores.each.items()})


def absolute_reward(reward: RewardModel, images: Tensor, texts: Sequence[str]) -> Rewards:
    """Score images (B, 3, H, W) in [0, 1] for `texts`, one per image."""
    return _score(reward, images, texts)


def by_name(name: str, rewards: Rewards) -> dict[str, Tensor]:
    """Name rewards for the log: the total `name`, and of a mix also NAME_REWARD; without gradients."""
    return {name: rewards.total.detach()} | {f"{name}_{one}": values for one, values in rewards.each.items()}


def hinge_loss(rewards: Tensor, margin: float) -> Tensor:
    """Return relu(margin − reward) per sample: no gradient above the margin, as in ReFL."""
    return torch.relu(margin - rewards)


def _score(reward: RewardModel, images: Tensor, texts: Sequence[str]) -> Rewards:
    if not isinstance(reward, RewardMix):
        return Rewards(reward.score(images, texts))
    each = reward.score_each(images, texts)
    return Rewards(reward.total(each), {name: scores.detach() for name, scores in each.items()})
