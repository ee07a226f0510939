"""FLUX as a base model: diffusers' own classes, on packed latents."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from srpo_core.config import ComputeSettings, ModelSettings
from srpo_core.errors import ArtifactError, ConfigError, DataError
from srpo_core.models.checkpointing import checkpoint_blocks
from srpo_core.models.flux_forward import exact_times, flux_velocity, is_plain, rotary_angles
from srpo_core.models.sharding import whole
from srpo_core.protocols import Condition

PATCH = 2  # a token is a 2x2 patch of latent pixels
IDS_TEXT = 3  # FLUX's position ids: (unused, row, column)


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) latents to tokens (B, h/2 · w/2, 4C); a token's channels are ordered c, dy, dx."""
    batch, channels, height, width = latents.shape
    tokens = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return tokens.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, S, 4C) to latents (B, C, height, width); the inverse of `pack`."""
    batch, _, features = tokens.shape
    patches = tokens.reshape(batch, height // PATCH, width // PATCH, features // PATCH**2, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // PATCH**2, height, width)


def image_ids(height: int, width: int) -> Tensor:
    """Position ids (S, 3) = (0, row, column) of the tokens of a latent of height x width."""
    rows, columns = height // PATCH, width // PATCH
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3)


def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Packed latents (B, S, C) of images (B, 3, H, W) in [0, 1]: the VAE's mode, so nothing is drawn."""
    with torch.no_grad():
        z = vae.encode(images * 2 - 1).latent_dist.mode()
    return pack((z - vae.config.shift_factor) * vae.config.scaling_factor)


class FluxBase:
    """A `FluxPipeline` taken apart for training: trainable transformer, frozen VAE, the pipeline's sampler."""

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, *, height: int, width: int) -> None:
        """Join the parts for images of height x width pixels. The VAE is frozen here."""
        self.transformer = transformer
        self.vae = vae.requires_grad_(requires_grad=False).eval()
        self.scheduler = scheduler
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self._autocast = False
        self._copy: Any = None
        self._ids: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._rotary: dict[tuple[int, torch.device], Tensor] = {}
        self.pixels = (height, width)
        self.latent_size = (height // scale, width // scale)
        self.latent_shape = (
            self.latent_size[0] * self.latent_size[1] // PATCH**2,
            vae.config.latent_channels * PATCH**2,
        )

    def to(self, device: torch.device) -> Self:
        """Move transformer and VAE to a device, in place."""
        self.transformer.to(device)
        self.vae.to(device)
        return self

    def prepare(self, compute: ComputeSettings) -> Self:
        """Set up the calls of training; see `BaseModel`.

        Raises:
            ConfigError: compilation is asked for, and there is no C++ compiler.
        """
        self._autocast = compute.autocast
        if compute.rollout_copy:
            self._copy = (
                deepcopy(self.transformer).requires_grad_(requires_grad=False).to(torch.bfloat16).eval()
            )
        checkpoint_blocks(self.transformer, compute.checkpoint_blocks)
        if compute.checkpoint_decode:
            self.vae.enable_gradient_checkpointing()
        if compute.compile:
            require_compiler()
            for transformer in filter(None, (self.transformer, self._copy)):
                transformer.compile_repeated_blocks(dynamic=False)
            self.vae.decoder.compile(dynamic=False)
        return self

    @contextmanager
    def autocast(self, *, enabled: bool) -> Iterator[None]:
        """Whether calls compute in bfloat16 while it is open, whatever `prepare` set up; see `BaseModel`."""
        before, self._autocast = self._autocast, enabled
        try:
            yield
        finally:
            self._autocast = before

    def velocity(self, latents: Tensor, timestep: Tensor, guidance: float, condition: Condition) -> Tensor:
        """Predict velocities (B, S, C); see `VelocityModel`."""
        with self._precision(latents.device):
            return self._predict(self.transformer, latents, timestep, guidance, condition)

    @torch.no_grad()
    def rollout_velocity(
        self, latents: Tensor, timestep: Tensor, guidance: float, condition: Condition
    ) -> Tensor:
        """Predict velocities (B, S, C) without gradients; see `BaseModel`."""
        if self._copy is None:
            return self.velocity(latents, timestep, guidance, condition)
        condition = Condition(condition.prompt_embeds.bfloat16(), condition.pooled.bfloat16())
        return self._predict(self._copy, latents.bfloat16(), timestep, guidance, condition)

    @torch.no_grad()
    def weights_changed(self) -> None:
        """Bring the copy for rollouts to the trained weights, whole or cut over workers; see `BaseModel`."""
        if self._copy is None:
            return
        first = next(self._copy.parameters()).is_meta  # it was made before there were any weights
        if first:
            self._copy.to_empty(device=self.vae.device)
        for copied, trained in zip(self._copy.parameters(), self.transformer.parameters(), strict=True):
            if first or trained.requires_grad:
                copied.copy_(whole(trained.to(copied.dtype)))  # half the bytes to gather

    def _precision(self, device: torch.device, *, cache: bool = True) -> AbstractContextManager[None]:
        """cache: keep the bfloat16 copy of each weight that asks for a gradient until the context is left."""
        if not self._autocast:
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache)

    def _predict(
        self, transformer: Any, latents: Tensor, timestep: Tensor, guidance: float, condition: Condition
    ) -> Tensor:
        takes_guidance = transformer.config.guidance_embeds  # FLUX.1-schnell does not
        guidances = (
            latents.new_full((len(latents),), guidance, dtype=torch.float32) if takes_guidance else None
        )
        text_length = condition.prompt_embeds.shape[1]
        if is_plain(transformer):
            return flux_velocity(
                transformer,
                latents,
                condition.prompt_embeds,
                condition.pooled,
                timestep=timestep,
                guidance=guidances,
                rotary=self._rotary_angles(text_length, latents.device),
            ).float()
        ids, text_ids = self._position_ids(text_length, latents.device)
        with exact_times(transformer, timestep, guidances):
            output: Tensor = transformer(
                hidden_states=latents,
                timestep=timestep,
                guidance=guidances,
                pooled_projections=condition.pooled,
                encoder_hidden_states=condition.prompt_embeds,
                img_ids=ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
        return output.float()

    def _rotary_angles(self, text_length: int, device: torch.device) -> Tensor:
        """Rotations of text and image tokens, made once per prompt length and device."""
        key = (text_length, device)
        if key not in self._rotary:
            ids, text_ids = self._position_ids(text_length, device)
            self._rotary[key] = rotary_angles(self.transformer, text_ids, ids)
        return self._rotary[key]

    def _position_ids(self, text_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Position ids of image and text, made once per prompt length and device."""
        key = (text_length, device)
        if key not in self._ids:
            ids = image_ids(*self.latent_size).to(device)
            self._ids[key] = ids, ids.new_zeros(text_length, IDS_TEXT)
        return self._ids[key]

    def encode(self, images: Tensor) -> Tensor:
        """Packed latents (B, S, C) of images (B, 3, H, W) in [0, 1], of which `decode` gives the images back."""
        return encode_images(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of packed latents, nominally in [0, 1], unclamped, differentiable."""
        config = self.vae.config
        z = unpack(latents, *self.latent_size) / config.scaling_factor + config.shift_factor
        with self._precision(z.device):
            decoded: Tensor = self.vae.decode(z, return_dict=False)[0]
        return decoded.float() / 2 + 0.5

    def spatial(self, latents: Tensor) -> Tensor:
        """Packed latents (B, S, C) as (B, c, h, w)."""
        return unpack(latents, *self.latent_size)

    @torch.no_grad()
    def generate(
        self, condition: Condition, noise: Tensor, *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Draw images (B, 3, H, W) in [0, 1] from packed noise by diffusers' `FluxPipeline` and its scheduler."""
        return self._sample(
            condition,
            noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output="pt",
        ).float()

    @torch.no_grad()
    def generate_latents(
        self, condition: Condition, noise: Tensor, *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """What `draw` decodes: the last latents (B, S, C), packed."""
        return self._sample(
            condition,
            noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output="latent",
        )

    def _sample(
        self,
        condition: Condition,
        noise: Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        output: str,
    ) -> Tensor:
        from diffusers import FluxPipeline

        pipeline = FluxPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            transformer=self.transformer,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )
        pipeline.set_progress_bar_config(disable=True)
        height, width = self.pixels
        with self._sampling(noise.device):
            images: Tensor = pipeline(
                prompt_embeds=condition.prompt_embeds,
                pooled_prompt_embeds=condition.pooled,
                latents=noise,
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                output_type=output,
            ).images
        return images

    @contextmanager
    def _sampling(self, device: torch.device) -> Iterator[None]:
        """The precision of training's calls; velocities, and so the pipeline's latents, stay in float32.

        Without the cache of casts: one context holds all steps and the decoder, and would keep a copy of every
        weight (24 GB of FLUX.1-dev) through them.
        """
        if not self._autocast:
            yield
            return
        hook = self.transformer.register_forward_hook(lambda *call: tuple(v.float() for v in call[2]))
        try:
            with self._precision(device, cache=False):
                yield
        finally:
            hook.remove()


def load_flux(settings: ModelSettings, *, empty: bool = False) -> FluxBase:
    """Load transformer, VAE and scheduler of a diffusers `FluxPipeline` directory in float32.

    empty: leave the transformer without weights, on the meta device, for someone who cuts it up first.

    Raises:
        ArtifactError: the directory is missing, incomplete or damaged.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    root = existing_pipeline(settings.path)
    vae = load_flux_vae(settings)
    with reading(root):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            root, subfolder="scheduler", local_files_only=True
        )
    directory = root / "transformer"
    transformer = empty_flux_transformer(directory) if empty else load_flux_transformer(directory)
    return FluxBase(transformer, vae, scheduler, height=settings.height, width=settings.width)


def load_flux_vae(settings: ModelSettings) -> Any:
    """Load the `AutoencoderKL` of a pipeline directory. Raises `ArtifactError` as `load_flux` does."""
    from diffusers import AutoencoderKL

    root = existing_pipeline(settings.path)
    with reading(root):
        return AutoencoderKL.from_pretrained(root, subfolder="vae", local_files_only=True)


def load_flux_transformer(directory: Path) -> Any:
    """Load a `FluxTransformer2DModel` from a diffusers directory, in float32.

    Raises:
        ArtifactError: the directory is missing or damaged.
    """
    from diffusers import FluxTransformer2DModel

    with reading(directory):
        return FluxTransformer2DModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)


def empty_flux_transformer(directory: Path) -> Any:
    """A `FluxTransformer2DModel` of a diffusers directory's configuration, on the meta device.

    Raises:
        ArtifactError: the directory is missing or its configuration damaged.
    """
    from diffusers import FluxTransformer2DModel

    with reading(directory), torch.device("meta"):
        config = FluxTransformer2DModel.load_config(directory, local_files_only=True)
        return FluxTransformer2DModel.from_config(config)


def encode_flux_prompts(
    settings: ModelSettings, prompts: Sequence[str], *, batch_size: int, device: torch.device
) -> Condition:
    """Encode prompts by both text encoders of the pipeline, in float32, in the order given; the result is on the CPU."""
    from diffusers import FluxPipeline

    if not prompts:
        raise DataError("no prompts to encode: check the splits that 'srpo stage ingest' wrote")
    root = existing_pipeline(settings.path)
    with reading(root):
        pipeline = FluxPipeline.from_pretrained(
            root, transformer=None, vae=None, dtype=torch.float32, local_files_only=True
        ).to(device)
    rows = []
    with torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            embeds, pooled, _ = pipeline.encode_prompt(
                prompt=list(prompts[start : start + batch_size]),
                prompt_2=None,
                max_sequence_length=settings.max_sequence_length,
                device=device,
            )
            rows.append((embeds.float().cpu(), pooled.float().cpu()))
    return Condition(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


def encode_flux_images(settings: ModelSettings, batches: Iterable[Tensor], *, device: torch.device) -> Tensor:
    """Packed latents (N, S, C) of batches of images (B, 3, H, W) in [0, 1], in the order given, on the CPU."""
    vae = load_flux_vae(settings).eval().to(device)
    return torch.cat([encode_images(vae, images.to(device)).cpu() for images in batches])


def existing_pipeline(path: str) -> Path:
    """The pipeline's directory. Raises `ArtifactError` when it is not there."""
    root = Path(path)
    if not (root / "model_index.json").is_file():
        raise ArtifactError(
            f"model.path {path}: no model_index.json there; a diffusers pipeline directory is needed"
        )
    return root


def require_compiler() -> None:
    """See that torch.compile finds the C++ compiler that it will call. Raises `ConfigError`."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compute.compile needs a C++ compiler and {compiler} is not found: install it, point CXX to "
            "another, or set train.compute.compile to false"
        )


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Turn what libraries raise on missing or damaged weights into one `ArtifactError`."""
    from diffusers.utils import logging
    from safetensors import SafetensorError

    logging.disable_progress_bar()  # one per part of the pipeline, gone in a blink
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory} cannot be read as model weights: {cause}") from error
