"""Distance between images that two models generated from the same noise, and the noise in latents.

PSNR and SSIM are written out here: torchmetrics' SSIM pads before it blurs, which changes the sixth digit of figures
that `proof.json` of published releases records.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Wang et al. 2004: a Gaussian window of 11 pixels, and the constants for values in [0, 1].
SSIM_WINDOW: Final = 11
SSIM_SIGMA: Final = 1.5
SSIM_C1: Final = 0.01**2
SSIM_C2: Final = 0.03**2

# Immerkær 1996: a mask that responds to noise, but not to slopes or curves.
NOISE_MASK: Final = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
NOISE_GAIN: Final = 6.0


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB of images (B, 3, H, W) in [0, 1]; (B,), infinite if they are equal."""
    error = (images - reference).square().flatten(1).mean(1)
    return -10 * torch.log10(error)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Compute the structural similarity of images (B, 3, H, W) in [0, 1], at least 11 x 11 pixels; (B,), at most 1."""
    offsets = torch.arange(SSIM_WINDOW, dtype=images.dtype) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = torch.outer(line, line) / line.sum() ** 2
    kernel = window.expand(images.shape[1], 1, -1, -1)

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=values.shape[1])

    mean_x, mean_y = blur(images), blur(reference)
    variance_x = blur(images**2) - mean_x**2
    variance_y = blur(reference**2) - mean_y**2
    covariance = blur(images * reference) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)) / (
        (mean_x**2 + mean_y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2)
    )
    return similarity.flatten(1).mean(1)


def noise_level(latents: Tensor) -> Tensor:
    """Estimate the standard deviation of white noise in latents (B, C, h, w), at least 3 x 3; (B,).

    Immerkær's mask also responds to fine detail, so only ratios between models that generated the same image are
    meaningful.
    """
    mask = torch.tensor(NOISE_MASK, dtype=latents.dtype).expand(latents.shape[1], 1, 3, 3)
    return F.conv2d(latents, mask, groups=latents.shape[1]).square().flatten(1).mean(1).sqrt() / NOISE_GAIN
