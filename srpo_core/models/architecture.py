"""What a base model defines itself. `base.py` adds precision, compilation and checkpointing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from srpo_core.protocols import Condition

if TYPE_CHECKING:
    from torch import Tensor


class Architecture(Protocol):
    """The functions in which base models differ. The weights are passed in, so that others work as well.

    latent_shape: (S, C), the packed latents of one image.
    """

    latent_shape: tuple[int, int]

    def predict(
        self, transformer: Any, latents: "Tensor", timestep: "Tensor", guidance: float, condition: Condition
    ) -> "Tensor":
        """Predict velocities (B, S, C) at packed latents (B, S, C) and timesteps (B,) in [0, 1]."""
        ...

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Decode packed latents to float32 images (B, 3, H, W), nominally in [0, 1], unclamped, differentiable."""
        ...

    def encode(self, vae: Any, images: "Tensor") -> "Tensor":
        """Encode images (B, 3, H, W) in [0, 1] to packed latents, without gradients or random numbers."""
        ...

    def unpack(self, latents: "Tensor") -> "Tensor":
        """Arrange packed latents (B, S, C) as an image (B, c, h, w)."""
        ...

    def sample(
        self,
        transformer: Any,
        vae: Any,
        condition: Condition,
        noise: "Tensor",
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> "Tensor":
        """Denoise packed noise (B, S, C) with the base's own sampler; returns the last packed latents."""
        ...


class PreparedRollout(Protocol):
    """The velocities of a rollout, with what its calls share computed once. Weights must not change meanwhile."""

    def covers(self, latents: "Tensor", timestep: "Tensor") -> bool:
        """Return whether it computes velocities at latents (B, S, C) and timesteps (B,)."""
        ...

    def __call__(self, latents: "Tensor", timestep: "Tensor") -> "Tensor":
        """Predict velocities (B, S, C) in float32, without gradients, at what it `covers`."""
        ...


@runtime_checkable
class PreparesRollouts(Protocol):
    """An `Architecture` that can compute what all calls of a rollout share in advance."""

    def prepare_rollout(
        self, transformer: Any, condition: Condition, *, times: "Tensor", guidance: float
    ) -> PreparedRollout | None:
        """Prepare calls with these prompts at times (N,) in [0, 1]; None if this transformer does not allow it."""
        ...


class ArchitectureFactory(Protocol):
    """Creates an `Architecture`, usually its class."""

    def __call__(self, vae: Any, scheduler: Any, *, height: int, width: int) -> Architecture:
        """Create it for images of `height` x `width` pixels; scheduler: None if nothing is sampled."""
        ...


class PromptEncoder(Protocol):
    """Encodes prompts."""

    def __call__(self, pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int) -> Condition:
        """Encode a batch of prompts with the text encoders of a diffusers pipeline, on the pipeline's device."""
        ...


@dataclass(frozen=True)
class BaseEntry:
    """One entry of the registry `BASES`.

    pipeline, transformer, vae, scheduler: names of diffusers classes; encode_prompt: prompts to `Condition`;
    condition_shapes: from the transformer's configuration and `max_sequence_length` to the shape of each tensor of a
    one-prompt `Condition`, by name; release_formats: whether `srpo_core.quantizers` can write its checkpoints;
    parts: those of the pipeline that its model_index.json must name.
    """

    pipeline: str
    transformer: str
    vae: str
    scheduler: str
    architecture: ArchitectureFactory
    encode_prompt: PromptEncoder
    condition_shapes: Callable[[Mapping[str, Any], int], Mapping[str, tuple[int, ...]]]
    release_formats: bool
    parts: tuple[str, ...] = ("scheduler", "transformer", "vae")
