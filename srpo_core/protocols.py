"""Protocols of the interchangeable parts: what algorithm, stages and registries expect of them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from srpo_core.config import ComputeSettings


@dataclass(frozen=True)
class Condition:
    """Encoded prompts of one batch, as a bundle of named tensors.

    tensors: (B, ...) by name, one row per prompt. The base model defines the names: FLUX has `prompt_embeds` and
    `pooled_prompt_embeds`.
    """

    tensors: Mapping[str, "Tensor"]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join batches of prompts in the order given; all parts hold the same names."""
        import torch

        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})

    def __len__(self) -> int:
        """Number of prompts."""
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Any) -> Self:
        """Select rows of the batch by a slice or a list of indices."""
        return type(self)({name: tensor[rows] for name, tensor in self.tensors.items()})

    def batch(self, rows: Any, device: "torch.device") -> Self:
        """Select rows by a slice or a list of indices, on a device; stored bfloat16 becomes float32, as models expect."""
        import torch

        on_device = {name: tensor[rows].to(device) for name, tensor in self.tensors.items()}
        return type(self)(
            {
                name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
                for name, tensor in on_device.items()
            }
        )

    def to(self, target: "torch.device | torch.dtype") -> Self:
        """Move all tensors to a device, or cast the floating-point ones to a type."""
        import torch

        return type(self)(
            {
                name: tensor
                if isinstance(target, torch.dtype) and not tensor.is_floating_point()
                else tensor.to(target)
                for name, tensor in self.tensors.items()
            }
        )


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

    @property
    def device(self) -> "torch.device":
        """The device that computes; the transformer's weights may be offloaded from it."""
        ...

    def to(self, device: "torch.device") -> Self:
        """Move all parts to a device, in place."""
        ...

    def prepare(self, compute: "ComputeSettings", *, num_sizes: int = 1) -> Self:
        """Apply the settings of `train.compute`, in place: once, with the weights loaded and on their device.

        num_sizes: number of image sizes that training uses.
        """
        ...

    def autocast(self, *, enabled: bool) -> AbstractContextManager[None]:
        """Within the context, compute in bfloat16 by torch's autocast or, if not enabled, in the weights' own type."""
        ...

    def sized(self, height: int, width: int) -> AbstractContextManager[None]:
        """Within the context, work on images of `height` x `width` pixels: `latent_shape` and all calls."""
        ...

    def velocity(
        self, latents: "Tensor", timestep: "Tensor", guidance: float, condition: Condition
    ) -> "Tensor":
        """Predict velocities with the trained weights; see `VelocityModel`."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """Within the context, keep sharded weights gathered between calls, if `train.compute.gather_rollout` is set.

        For calls without gradients, between which the weights do not change; every rank enters it.
        """
        ...

    def prepared(
        self, condition: Condition, *, times: "Tensor", guidance: float
    ) -> AbstractContextManager[None]:
        """Within the context, `velocity` may compute in advance what its calls with these inputs share; see `gathered`.

        For calls without gradients with this very `condition`, at times (N,) in [0, 1]. Other calls remain possible, and
        results differ by rounding. Weights are `gathered` too; they must not change, and every rank enters the context.
        """
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """Decode packed latents (B, S, C) to images (B, 3, H, W), nominally in [0, 1], unclamped, differentiable."""
        ...

    def generate(
        self, condition: Condition, noise: "Tensor", *, num_inference_steps: int, guidance_scale: float
    ) -> "Tensor":
        """Generate images (B, 3, H, W) in [0, 1] from packed noise (B, S, C) with the base's own sampler."""
        ...

    def spatial(self, latents: "Tensor") -> "Tensor":
        """Arrange packed latents (B, S, C) as an image (B, c, h, w)."""
        ...

    def generate_latents(
        self, condition: Condition, noise: "Tensor", *, num_inference_steps: int, guidance_scale: float
    ) -> "Tensor":
        """Generate the last latents (B, S, C), which `generate` decodes."""
        ...


class RewardModel(Protocol):
    """A differentiable scorer of images, of any form. Its own weights are frozen."""

    def to(self, device: "torch.device") -> Self:
        """Move it to a device, in place."""
        ...

    def score(self, images: "Tensor", texts: Sequence[str]) -> "Tensor":
        """Score images (B, 3, H, W) in [0, 1] against `texts`: one text per image, or several rounds of them.

        texts: n·B texts; text t belongs to image t mod B. An image is encoded once, however many texts it has.
        Returns (len(texts),), float32 also under autocast. Gradients flow to the images.
        """
        ...


@runtime_checkable
class TwoTowers(RewardModel, Protocol):
    """A reward that is the cosine of two towers. Features are L2-normalised, and some metrics need them."""

    @property
    def scale(self) -> float:
        """The factor of a cosine similarity in the reward."""
        ...

    def encode_images(self, images: "Tensor") -> "Tensor":
        """Encode images (B, 3, H, W) in [0, 1] to features (B, D); gradients flow to the images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> "Tensor":
        """Encode texts to features (B, D), without gradients."""
        ...


@runtime_checkable
class RewardMix(RewardModel, Protocol):
    """A weighted sum of rewards."""

    def total(self, each: Mapping[str, "Tensor"]) -> "Tensor":
        """Return the weighted sum of the scores of each reward, by name."""
        ...

    def score_each(self, images: "Tensor", texts: Sequence[str]) -> Mapping[str, "Tensor"]:
        """Score by each reward alone, before its weight, by its name; see `RewardModel.score`."""
        ...


class Judge(Protocol):
    """A classifier of style and subject that is never trained against."""

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
