"""What base and distillation share: latents of the family's pictures, batches of them under noise, FLUX's velocity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from srpo_core.models.flux import image_ids, pack
from tiny_family.captions import T5_TOKENS, drawn_captions
from tiny_family.pictures import read_pictures, read_subjects
from tiny_family.vae import OUT as VAE
from tiny_family.vae import encode

SHIFT: Final = 1.583  # what FLUX's dynamic shift gives for 16 tokens


@dataclass(frozen=True)
class Latents:
    """Packed latents (N, 16, 64) of mean 0 and deviation 1, the subject and the style (index into STYLES) of each."""

    packed: Tensor
    subjects: Sequence[str]
    styles: Tensor


@dataclass(frozen=True)
class NoisyBatch:
    """x = σ · noise + (1 − σ) · image (B, 16, 64), σ (B,), its velocity noise − image, and a caption each."""

    x: Tensor
    sigma: Tensor
    velocity: Tensor
    texts: list[str]


def read_latents() -> Latents:
    """The family's subjects in all four styles, encoded once: they are not augmented, so none is mirrored."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(VAE, torch_dtype=torch.float32)
    names = read_subjects()
    pictures = read_pictures("train").of([*names["train"], *names["eval"]])
    latents = (encode(vae, pictures.pixels) - vae.config.shift_factor) * vae.config.scaling_factor
    return Latents(pack(latents), pictures.subjects, pictures.styles)


def noisy_batch(latents: Latents, size: int, generator: torch.Generator, null_share: float) -> NoisyBatch:
    """Draw pictures, captions (a share `null_share` of them empty), noise and noise levels."""
    rows = torch.randint(len(latents.packed), (size,), generator=generator)
    subjects = [latents.subjects[row] for row in rows]
    texts = drawn_captions(subjects, latents.styles[rows], generator, null_share)
    image = latents.packed[rows]
    noise = torch.randn(image.shape, generator=generator)
    sigma = shifted_logit_normal(size, generator)
    x = sigma[:, None, None] * noise + (1 - sigma[:, None, None]) * image
    return NoisyBatch(x, sigma, noise - image, texts)


def shifted_logit_normal(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,): logit-normal, as SD3 and FLUX train, shifted as they are drawn with."""
    t = torch.randn(count, generator=generator).sigmoid()
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def velocity(
    transformer: nn.Module, x: Tensor, sigma: Tensor, guidance: Tensor, pooled: Tensor, embeds: Tensor
) -> Tensor:
    """Velocities (B, 16, 64) of a FLUX transformer at 64 x 64 pixels."""
    output: Tensor = transformer(
        hidden_states=x,
        timestep=sigma,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        img_ids=image_ids(8, 8),
        txt_ids=torch.zeros(T5_TOKENS, 3),
        return_dict=False,
    )[0]
    return output
