"""A base model as training and generation use it, written once for all architectures."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor

from srpo_core.config import ComputeSettings, DecodedParts
from srpo_core.models.architecture import Architecture, PreparedRollout, PreparesRollouts
from srpo_core.models.attention import use_attention
from srpo_core.models.autoencoder import decode_in
from srpo_core.models.checkpointing import checkpoint_blocks
from srpo_core.models.compiling import compile_regions
from srpo_core.models.offloading import offload_blocks
from srpo_core.models.sharding import keep_gathered
from srpo_core.protocols import Condition

# layers whose weights torch.autocast casts to bfloat16 at each call
CAST_BY_AUTOCAST = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


class Base:
    """A trainable transformer with a frozen VAE; implements `BaseModel` for any `Architecture`."""

    def __init__(
        self,
        architecture: Architecture,
        transformer: Any,
        vae: Any,
        *,
        of_size: Callable[[int, int], Architecture] | None = None,
    ) -> None:
        """Combine the parts and freeze the VAE.

        of_size: creates the architecture for images of another height and width; only `sized` needs it.
        """
        self.architecture = architecture
        self._of_size = of_size
        self._sizes: dict[tuple[int, int], Architecture] = {}
        self.transformer = transformer
        self.vae = vae.requires_grad_(requires_grad=False).eval()
        self.latent_shape = architecture.latent_shape
        self._autocast = False
        self._gather_rollout = False
        self._prepared: tuple[PreparedRollout, Condition, float] | None = None

    def to(self, device: torch.device) -> Self:
        """Move transformer and VAE to a device, in place."""
        self.transformer.to(device)
        self.vae.to(device)
        return self

    def place(self, device: torch.device, *, offload: bool) -> Self:
        """Prepare for generation on a device, in place.

        offload: keep the transformer in the host's memory; see `offload_blocks`.
        """
        if not offload:
            return self.to(device)
        self.vae.to(device)
        offload_blocks(self.transformer, device)
        return self

    def hold_matrices(self, dtype: torch.dtype) -> Self:
        """Convert the weights that autocast casts at each call, in place; see `load_transformer`. Not if offloaded."""
        for module in self.transformer.modules():
            if isinstance(module, CAST_BY_AUTOCAST):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        """The device that computes. The transformer's weights may be in the host's memory; see `place`."""
        device: torch.device = self.vae.device
        return device

    def decode_in(self, parts: DecodedParts) -> Self:
        """Decode whole batches, slices or tiles, as `generate.decode` says."""
        height, width = self.architecture.unpack(torch.empty(1, *self.latent_shape, device="meta")).shape[-2:]
        decode_in(self.vae, parts, max(height, width))
        return self

    def prepare(self, compute: ComputeSettings, *, num_sizes: int = 1) -> Self:
        """Apply the settings of `train.compute`; see `BaseModel`.

        Raises:
            ConfigError: `compile` is set, and there is no C++ compiler; or there is no such implementation of attention.
        """
        self._autocast = compute.autocast
        self._gather_rollout = compute.gather_rollout
        use_attention(self.transformer, compute.attention)
        checkpoint_blocks(self.transformer, compute.checkpoint_blocks)
        if compute.checkpoint_decode:
            self.vae.enable_gradient_checkpointing()
        if compute.compile:
            compile_regions(self.transformer, self.vae.decoder, num_sizes=num_sizes)
        return self

    @contextmanager
    def autocast(self, *, enabled: bool) -> Iterator[None]:
        """Override the precision that `prepare` set; see `BaseModel`."""
        before, self._autocast = self._autocast, enabled
        try:
            yield
        finally:
            self._autocast = before

    @contextmanager
    def sized(self, height: int, width: int) -> Iterator[None]:
        """Work on images of another size within the context; see `BaseModel`."""
        assert self._of_size is not None
        size = (height, width)
        if size not in self._sizes:  # kept, because it keeps what it has computed for its positions
            self._sizes[size] = self._of_size(height, width)
        before, self.architecture = self.architecture, self._sizes[size]
        self.latent_shape = self.architecture.latent_shape
        try:
            yield
        finally:
            self.architecture, self.latent_shape = before, before.latent_shape

    def velocity(self, latents: Tensor, timestep: Tensor, guidance: float, condition: Condition) -> Tensor:
        """Predict velocities (B, S, C); see `VelocityModel`."""
        with self._precision(latents.device):
            if self._prepared is not None and not torch.is_grad_enabled():
                rollout, of_condition, of_guidance = self._prepared
                same = condition is of_condition and guidance == of_guidance
                if same and rollout.covers(latents, timestep):
                    return rollout(latents, timestep)
            return self.architecture.predict(self.transformer, latents, timestep, guidance, condition)

    def gathered(self) -> AbstractContextManager[None]:
        """Keep sharded weights gathered between calls if the settings ask for it; see `BaseModel`."""
        return keep_gathered(self.transformer) if self._gather_rollout else nullcontext()

    @contextmanager
    def prepared(self, condition: Condition, *, times: Tensor, guidance: float) -> Iterator[None]:
        """Compute once what the calls of a rollout share, if the architecture can; see `BaseModel`."""
        before, architecture = self._prepared, self.architecture
        with self.gathered():
            if len(times) > 0 and isinstance(architecture, PreparesRollouts):
                with torch.no_grad(), self._precision(self.device):
                    rollout = architecture.prepare_rollout(
                        self.transformer, condition, times=times, guidance=guidance
                    )
                self._prepared = None if rollout is None else (rollout, condition, guidance)
            try:
                yield
            finally:
                self._prepared = before

    def decode(self, latents: Tensor) -> Tensor:
        """Decode packed latents (B, S, C) to images (B, 3, H, W); see `BaseModel`."""
        with self._precision(latents.device):
            return self.architecture.decode(self.vae, latents)

    def spatial(self, latents: Tensor) -> Tensor:
        """Arrange packed latents (B, S, C) as images (B, c, h, w)."""
        return self.architecture.unpack(latents)

    @torch.no_grad()
    def generate(
        self, condition: Condition, noise: Tensor, *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Generate images (B, 3, H, W) in [0, 1] from packed noise with the base's own sampler."""
        latents = self.generate_latents(
            condition, noise, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        return self.decode(latents).clamp(0, 1)

    @torch.no_grad()
    def generate_latents(
        self, condition: Condition, noise: Tensor, *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Generate the last latents (B, S, C), which `generate` decodes."""
        with self.gathered(), self._sampling(noise.device):
            return self.architecture.sample(
                self.transformer,
                self.vae,
                condition,
                noise,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
            )

    def _precision(self, device: torch.device, *, cache: bool = True) -> AbstractContextManager[None]:
        """cache: keep the bfloat16 copy of each weight that requires a gradient until the context exits."""
        if not self._autocast:
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache)

    @contextmanager
    def _sampling(self, device: torch.device) -> Iterator[None]:
        """The precision of training's calls, with velocities, and so the sampler's latents, in float32.

        The cache of casts is off: one context spans all steps, and would keep a bfloat16 copy of every weight (24 GB
        of FLUX.1-dev) through them.
        """
        if not self._autocast:
            yield
            return
        hook = self.transformer.register_forward_hook(
            lambda _module, _inputs, output: tuple(value.float() for value in output)
        )
        try:
            with self._precision(device, cache=False):
                yield
        finally:
            hook.remove()
