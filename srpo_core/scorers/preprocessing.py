"""The way from a picture to what an image tower expects; differentiable throughout."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


def fit(images: Tensor, size: int) -> Tensor:
    """Bring images (B, 3, H, W) to (B, 3, size, size).

    Shorter side to `size` by torchvision's antialiased bicubic, then the centre. Values may leave
    [0, 1] a little, as bicubic overshoots; nothing is rounded or clamped.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    resized: Tensor = resize(images, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cropped: Tensor = center_crop(resized, [size, size])
    return cropped


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract `mean` and divide by `std`, per channel of images (B, 3, H, W)."""
    shape = (1, len(mean), 1, 1)
    return (images - torch.tensor(mean).to(images).view(shape)) / torch.tensor(std).to(images).view(shape)
