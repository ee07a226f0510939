"""The relative reward of SRPO: the same image is scored for a wanted and for an unwanted control word."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srpo_core.protocols import RewardModel


def with_control_word(word: str, prompts: Sequence[str]) -> list[str]:
    """Put a control word before each prompt: "Ink. red apple"."""
    return [f"{word}. {prompt}" for prompt in prompts]


def relative_reward(
    reward: RewardModel, images: Tensor, positive: Sequence[str], negative: Sequence[str], k: Tensor
) -> Tensor:
    """Score images (B, 3, H, W) in [0, 1] for `positive` against `negative` texts.

    Returns (B,): <i, (1+k)·p − n> with unit features i, p, n and the discount k (B,), times the scorer's scale.
    Shen et al. 2025, section 3.3, in the form of the reference implementation.
    """
    p, n = reward.encode_texts(positive), reward.encode_texts(negative)
    i = reward.encode_images(images)
    return reward.scale * (i * ((1 + k[:, None]) * p - n)).sum(dim=-1)


def absolute_reward(reward: RewardModel, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Score images (B, 3, H, W) in [0, 1] for `texts`: the cosine times the scorer's scale, (B,)."""
    return reward.scale * (reward.encode_images(images) * reward.encode_texts(texts)).sum(dim=-1)


def hinge_loss(rewards: Tensor, margin: float) -> Tensor:
    """Return relu(margin − reward) per sample: no gradient above the margin, as in ReFL."""
    return torch.relu(margin - rewards)
