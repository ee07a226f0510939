"""Encode and decode with diffusers' `AutoencoderKL`, the VAE of FLUX and of Stable Diffusion 3."""

from typing import Any

import torch
from torch import Tensor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents (B, c, h, w) to images (B, 3, H, W), nominally in [0, 1], unclamped, differentiable."""
    z = latents / vae.config.scaling_factor + vae.config.shift_factor
    decoded: Tensor = vae.decode(z, return_dict=False)[0]
    return decoded.float() / 2 + 0.5


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in [0, 1] to latents (B, c, h, w): the mode of the posterior, not a sample of it."""
    z = vae.encode(images * 2 - 1).latent_dist.mode()
    latents: Tensor = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return latents


def latent_size(vae: Any, *, height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of images of `height` x `width` pixels."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    return height // scale, width // scale
