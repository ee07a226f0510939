"""Encode and decode with diffusers' `AutoencoderKL`, the VAE of FLUX and of Stable Diffusion 3."""

from typing import Any, Final

import torch
from torch import Tensor

from srpo_core.config import DecodedParts

TILE_UNIT: Final = (
    4  # a tile's length is a multiple, so that a quarter of it is a whole number of latent pixels
)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents (B, c, h, w) to images (B, 3, H, W), nominally in [0, 1], unclamped, differentiable."""
    z = latents / vae.config.scaling_factor + vae.config.shift_factor
    decoded: Tensor = vae.decode(z, return_dict=False)[0]
    return decoded.float() / 2 + 0.5


def decode_in(vae: Any, parts: DecodedParts, longer_side: int) -> None:
    """Let `decode` compute whole batches, slices (one image at a time), or tiles of one image.

    longer_side: of the latents. A tile is about half as long, and overlaps the next one by a quarter of its length.
    """
    if parts == "whole":
        vae.disable_slicing()
        vae.disable_tiling()
        return
    vae.enable_slicing()
    if parts == "tiles":
        vae.enable_tiling()
        # diffusers' own size is that of the images that the VAE was trained on, which are often larger than ours
        vae.tile_latent_min_size = TILE_UNIT * -(-longer_side // (2 * TILE_UNIT))
        vae.tile_sample_min_size = vae.tile_latent_min_size * _scale(vae)


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in [0, 1] to latents (B, c, h, w): the mode of the posterior, not a sample of it."""
    z = vae.encode(images * 2 - 1).latent_dist.mode()
    latents: Tensor = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return latents


def latent_size(vae: Any, *, height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of images of `height` x `width` pixels."""
    return height // _scale(vae), width // _scale(vae)


def _scale(vae: Any) -> int:
    """Pixels of an image per latent pixel, in one direction."""
    scale: int = 2 ** (len(vae.config.block_out_channels) - 1)
    return scale
