"""A reward whose image tower runs in bfloat16, for training on hardware where that is faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from srpo_core.protocols import RewardModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class AutocastReward:
    """Run the image tower of `reward` under torch's autocast; features are float32 and have unit length."""

    reward: RewardModel

    @property
    def scale(self) -> float:
        """The scale of the reward."""
        return self.reward.scale

    def to(self, device: "torch.device") -> Self:
        """Move the towers to a device, in place."""
        self.reward.to(device)
        return self

    def encode_images(self, images: "Tensor") -> "Tensor":
        """Compute features (B, D) of images (B, 3, H, W) in [0, 1]; gradients flow to the images."""
        import torch

        with torch.autocast(images.device.type, torch.bfloat16):
            features = self.reward.encode_images(images)
        # the relative reward is a small difference of cosines, so the length must not be rounded
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> "Tensor":
        """Compute features (B, D) of texts, without gradients."""
        return self.reward.encode_texts(texts)
