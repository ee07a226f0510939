"""Differentiable preprocessing of images for an image tower."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


def fit(images: Tensor, size: int) -> Tensor:
    """Resize and crop images (B, 3, H, W) to (B, 3, size, size).

    The shorter side is resized to `size` by torchvision's antialiased bicubic interpolation, then the centre is
    cropped. Values may leave [0, 1] slightly, because bicubic interpolation overshoots. Nothing is rounded or clamped.
    """
    if images.shape[-2:] == (size, size):
        return images
    fitted: Tensor = _Fit.apply(images, size)
    return fitted


class _Fit(torch.autograd.Function):
    """Resize and centre crop, with the gradient computed as two matrix products.

    The map is linear and separable. On a CPU, torch's gradient of the antialiased resize takes about ten times as long.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, size: int) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        context.sides, context.size = images.shape[-2:], size
        resized: Tensor = resize(images, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        cropped: Tensor = center_crop(resized, [size, size])
        return cropped

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        size, shorter = context.size, min(context.sides)
        down, across = (
            _resize_and_centre(length, size * length // shorter, size, gradient.dtype, gradient.device)
            for length in context.sides
        )
        return down.T @ gradient @ across, None


@cache
def _resize_and_centre(
    length: int, resized: int, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Compute the matrix (size, length) of an antialiased bicubic resize to `resized` and a centre crop, for one side.

    It is computed on the CPU and copied to the device once, because a copy at each step would wait for the device.
    """
    # each column of the identity is a line of pixels of which only one is not black
    identity = torch.eye(length, dtype=dtype)[None, None]
    matrix = interpolate(identity, (resized, length), mode="bicubic", antialias=True)[0, 0]
    first = round((resized - size) / 2)
    return matrix[first : first + size].to(device)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract `mean` and divide by `std`, per channel of images (B, 3, H, W)."""
    centre, scale = (_per_channel(tuple(values), images.dtype, images.device) for values in (mean, std))
    return (images - centre) / scale


@cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values as (1, C, 1, 1), copied to the device once."""
    return torch.tensor(values).to(device, dtype).view(1, len(values), 1, 1)
