"""Rewards whose forward pass runs in bfloat16, for training on hardware where that is faster."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from srpo_core.protocols import RewardModel
from srpo_core.scorers.mixed import MixedReward

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class AutocastReward:
    """Run `reward` under torch's autocast; scores are float32."""

    reward: RewardModel

    def to(self, device: "torch.device") -> Self:
        """Move the reward to a device, in place."""
        self.reward.to(device)
        return self

    def score(self, images: "Tensor", texts: Sequence[str]) -> "Tensor":
        """Score images (B, 3, H, W) in [0, 1]; see `RewardModel.score`."""
        import torch

        with torch.autocast(images.device.type, torch.bfloat16):
            return self.reward.score(images, texts).float()


def with_autocast(reward: RewardModel) -> RewardModel:
    """Return a reward that runs under autocast; of a mix, each of its rewards does."""
    if isinstance(reward, MixedReward):
        return replace(reward, rewards={name: AutocastReward(one) for name, one in reward.rewards.items()})
    return AutocastReward(reward)
