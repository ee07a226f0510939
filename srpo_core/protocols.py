"""What interchangeable parts must offer: the shapes that algorithm, stages and registries agree on."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from srpo_core.config import ComputeSettings


@dataclass(frozen=True)
class Condition:
    """Encoded prompts of one batch.

    prompt_embeds: (B, L, D) of the T5 encoder; pooled: (B, P) of the CLIP text encoder.
    """

    prompt_embeds: "Tensor"
    pooled: "Tensor"

    def __getitem__(self, rows: Any) -> "Condition":
        """Select rows of the batch."""
        return Condition(self.prompt_embeds[rows], self.pooled[rows])

    def to(self, device: "torch.device") -> "Condition":
        """The same on a device."""
        return Condition(self.prompt_embeds.to(device), self.pooled.to(device))


class VelocityModel(Protocol):
    """A rectified-flow model: the velocity v = noise - image at packed latents."""

    def __call__(
        self, latents: "Tensor", timestep: "Tensor", guidance: float, condition: Condition
    ) -> "Tensor":
        """Predict velocities (B, S, C) at packed latents (B, S, C) and timesteps (B,) in [0, 1]."""
        ...


class BaseModel(Protocol):
    """A text-to-image base: a trainable transformer with a frozen decoder, on packed latents."""

    transformer: "torch.nn.Module"
    latent_shape: tuple[int, int]

    def to(self, device: "torch.device") -> Self:
        """Move all parts to a device, in place."""
        ...

    def prepare(self, compute: "ComputeSettings") -> Self:
        """Set up the calls of training, in place: once, with the weights loaded and on their device."""
        ...

    def autocast(self, *, enabled: bool) -> AbstractContextManager[None]:
        """While it is open, compute in bfloat16 by torch's autocast or, not enabled, in the weights' own type."""
        ...

    def velocity(
        self, latents: "Tensor", timestep: "Tensor", guidance: float, condition: Condition
    ) -> "Tensor":
        """Predict velocities by the trained weights; see `VelocityModel`."""
        ...

    def rollout_velocity(
        self, latents: "Tensor", timestep: "Tensor", guidance: float, condition: Condition
    ) -> "Tensor":
        """Predict velocities without gradients, by the copy for rollouts if there is one; see `VelocityModel`."""
        ...

    def weights_changed(self) -> None:
        """Bring the copy for rollouts, if there is one, to the trained weights; after every optimizer step."""
        ...

    def encode(self, images: "Tensor") -> "Tensor":
        """Turn images (B, 3, H, W) in [0, 1] into packed latents (B, S, C), without gradients or draws."""
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """Turn packed latents (B, S, C) into images (B, 3, H, W), nominally in [0, 1], unclamped, differentiable."""
        ...

    def generate(
        self, condition: Condition, noise: "Tensor", *, num_inference_steps: int, guidance_scale: float
    ) -> "Tensor":
        """Draw images (B, 3, H, W) in [0, 1] from packed noise (B, S, C) with the base's own sampler."""
        ...

    def spatial(self, latents: "Tensor") -> "Tensor":
        """Packed latents (B, S, C) as an image of them, (B, c, h, w)."""
        ...

    def generate_latents(
        self, condition: Condition, noise: "Tensor", *, num_inference_steps: int, guidance_scale: float
    ) -> "Tensor":
        """The last latents (B, S, C) of `draw`, before they are decoded."""
        ...


class RewardModel(Protocol):
    """A differentiable image-text scorer with two towers; features are L2-normalised."""

    @property
    def scale(self) -> float:
        """What a cosine is multiplied with."""
        ...

    def to(self, device: "torch.device") -> Self:
        """Move the towers to a device, in place."""
        ...

    def encode_images(self, images: "Tensor") -> "Tensor":
        """Features (B, D) of images (B, 3, H, W) in [0, 1]; gradients flow to the images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> "Tensor":
        """Features (B, D) of texts; no gradients."""
        ...


class Judge(Protocol):
    """A classifier that no training ever sees: which style, which subject."""

    styles: Sequence[str]
    subjects: Sequence[str]

    def to(self, device: "torch.device") -> Self:
        """Move it to a device, in place."""
        ...

    def features(self, images: "Tensor") -> "Tensor":
        """Features (B, D) of images (B, 3, H, W) in [0, 1]."""
        ...

    def style_probabilities(self, images: "Tensor") -> "Tensor":
        """Probabilities (B, len(styles))."""
        ...

    def subject_logits(self, images: "Tensor") -> "Tensor":
        """Logits (B, len(subjects))."""
        ...
