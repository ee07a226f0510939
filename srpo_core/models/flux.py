"""FLUX as a base model: diffusers' own classes, on packed latents."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from srpo_core.models.architecture import BaseEntry
from srpo_core.models.autoencoder import decode, encode, latent_size
from srpo_core.models.flux_forward import exact_times, flux_velocity, is_plain, rotary_angles
from srpo_core.models.flux_rollout import FluxRollout, can_be_prepared
from srpo_core.protocols import Condition

PATCH: Final = 2  # a token is a 2x2 patch of latent pixels
POSITION_IDS: Final = 3  # FLUX's position ids: (unused, row, column)

# The tensors of a condition: (B, L, D) of the T5 encoder, (B, P) of the CLIP text encoder.
PROMPT_EMBEDS: Final = "prompt_embeds"
POOLED_EMBEDS: Final = "pooled_prompt_embeds"


def pack(latents: Tensor) -> Tensor:
    """Arrange (B, C, h, w) latents as tokens (B, h/2 · w/2, 4C); a token's channels are ordered c, dy, dx."""
    batch, channels, height, width = latents.shape
    tokens = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return tokens.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Arrange tokens (B, S, 4C) as latents (B, C, height, width); the inverse of `pack`."""
    batch, _, features = tokens.shape
    patches = tokens.reshape(batch, height // PATCH, width // PATCH, features // PATCH**2, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // PATCH**2, height, width)


def image_ids(height: int, width: int) -> Tensor:
    """Return position ids (S, 3) = (0, row, column) of the tokens of a latent of height x width."""
    rows, columns = height // PATCH, width // PATCH
    ids = torch.zeros(rows, columns, POSITION_IDS)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, POSITION_IDS)


class Flux:
    """The `Architecture` of `FluxPipeline`."""

    def __init__(self, vae: Any, scheduler: Any, *, height: int, width: int) -> None:
        """See `ArchitectureFactory`."""
        self.scheduler = scheduler
        self.image_size = (height, width)
        self.latent_size = latent_size(vae, height=height, width=width)
        self.latent_shape = (
            self.latent_size[0] * self.latent_size[1] // PATCH**2,
            vae.config.latent_channels * PATCH**2,
        )
        # by prompt length and device
        self._ids: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._rotary: dict[tuple[int, torch.device], Tensor] = {}

    def predict(
        self, transformer: Any, latents: Tensor, timestep: Tensor, guidance: float, condition: Condition
    ) -> Tensor:
        """Predict velocities (B, S, C) in float32; see `Architecture`."""
        takes_guidance = transformer.config.guidance_embeds  # FLUX.1-schnell does not
        guidances = (
            latents.new_full((len(latents),), guidance, dtype=torch.float32) if takes_guidance else None
        )
        text, pooled = condition.tensors[PROMPT_EMBEDS], condition.tensors[POOLED_EMBEDS]
        if is_plain(transformer):
            return flux_velocity(
                transformer,
                latents,
                text,
                pooled,
                timestep=timestep,
                guidance=guidances,
                rotary=self._rotary_angles(transformer, text.shape[1], latents.device),
            ).float()
        ids, text_ids = self._position_ids(text.shape[1], latents.device)
        with exact_times(transformer, timestep, guidances):
            output: Tensor = transformer(
                hidden_states=latents,
                timestep=timestep,
                guidance=guidances,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                img_ids=ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
        return output.float()

    def prepare_rollout(
        self, transformer: Any, condition: Condition, *, times: Tensor, guidance: float
    ) -> FluxRollout | None:
        """Prepare the calls of a rollout, if `can_be_prepared`; see `PreparesRollouts`."""
        text, pooled = condition.tensors[PROMPT_EMBEDS], condition.tensors[POOLED_EMBEDS]
        if not can_be_prepared(transformer, text.device):
            return None
        return FluxRollout(
            transformer,
            text,
            pooled,
            times=times,
            guidance=torch.tensor([guidance]) if transformer.config.guidance_embeds else None,
            rotary=self._rotary_angles(transformer, text.shape[1], text.device),
        )

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode packed latents (B, S, C) to images (B, 3, H, W); see `Architecture`."""
        return decode(vae, self.unpack(latents))

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to packed latents (B, S, C); see `Architecture`."""
        return pack(encode(vae, images))

    def unpack(self, latents: Tensor) -> Tensor:
        """Arrange packed latents (B, S, C) as (B, c, h, w)."""
        return unpack(latents, *self.latent_size)

    def sample(
        self,
        transformer: Any,
        vae: Any,
        condition: Condition,
        noise: Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> Tensor:
        """Denoise packed noise (B, S, C) with `FluxPipeline` and its scheduler; see `Architecture`."""
        from diffusers import FluxPipeline

        pipeline = FluxPipeline(
            scheduler=self.scheduler,
            vae=vae,
            transformer=transformer,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )
        pipeline.set_progress_bar_config(disable=True)
        height, width = self.image_size
        latents: Tensor = pipeline(
            prompt_embeds=condition.tensors[PROMPT_EMBEDS],
            pooled_prompt_embeds=condition.tensors[POOLED_EMBEDS],
            latents=noise,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).images
        return latents

    def _rotary_angles(self, transformer: Any, text_length: int, device: torch.device) -> Tensor:
        """Return the rotations of text and image tokens, computed once per prompt length and device."""
        key = (text_length, device)
        if key not in self._rotary:
            ids, text_ids = self._position_ids(text_length, device)
            self._rotary[key] = rotary_angles(transformer, text_ids, ids)
        return self._rotary[key]

    def _position_ids(self, text_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the position ids of image and text, computed once per prompt length and device."""
        key = (text_length, device)
        if key not in self._ids:
            ids = image_ids(*self.latent_size).to(device)
            self._ids[key] = ids, ids.new_zeros(text_length, POSITION_IDS)
        return self._ids[key]


def encode_prompt(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int) -> Condition:
    """Encode prompts with both text encoders of a `FluxPipeline`; see `PromptEncoder`."""
    embeds, pooled, _ = pipeline.encode_prompt(
        prompt=list(prompts),
        prompt_2=None,
        max_sequence_length=max_sequence_length,
        device=pipeline.device,
    )
    return Condition({PROMPT_EMBEDS: embeds, POOLED_EMBEDS: pooled})


def condition_shapes(config: Mapping[str, Any], max_sequence_length: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a one-prompt condition; see `BaseEntry`."""
    return {
        PROMPT_EMBEDS: (1, max_sequence_length, config["joint_attention_dim"]),
        POOLED_EMBEDS: (1, config["pooled_projection_dim"]),
    }


FLUX: Final = BaseEntry(
    pipeline="FluxPipeline",
    transformer="FluxTransformer2DModel",
    vae="AutoencoderKL",
    scheduler="FlowMatchEulerDiscreteScheduler",
    architecture=Flux,
    encode_prompt=encode_prompt,
    condition_shapes=condition_shapes,
    release_formats=True,
    parts=(
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "transformer",
        "vae",
    ),
)
