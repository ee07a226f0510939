"""Statistics of pixels that show reward hacking, without a model: colour, highlights, fine structure, grids.

The biases of rewards show in images: HPSv2 prefers red, PickScore purple, ImageReward over-exposure, and models that
work on patches may produce a pattern of the patches' size (Shen et al. 2025, section 4). Every function takes images
(K, 3, H, W) in [0, 1] and returns one figure per image, (K,).
"""

from typing import Final

import torch
from torch import Tensor

LUMINANCE: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601
CLIPPED: Final = 250 / 255
HIGH_FREQUENCY: Final = 0.25  # cycles per pixel: half of the highest frequency that pixels can represent
ROUNDING: Final = 1e-4  # tolerance of a frequency in cycles per 16 pixels
GRID_PIXELS: Final = 16  # one token of FLUX: two latents of eight pixels


def saturation(images: Tensor) -> Tensor:
    """Mean saturation in HSV, in [0, 1]: 0 is grey."""
    brightest, darkest = images.amax(1), images.amin(1)
    return ((brightest - darkest) / brightest.clamp_min(1e-6)).mean((1, 2))


def red_over_green(images: Tensor) -> Tensor:
    """Mean red minus green, in [-1, 1]: one of two axes that show a shift of hue.

    Hue is an angle, so it has no mean, and grey has no hue. A shift is therefore measured by the two opponent colours,
    of which this is one.
    """
    return (images[:, 0] - images[:, 1]).mean((1, 2))


def yellow_over_blue(images: Tensor) -> Tensor:
    """Mean of red and green minus blue, in [-1, 1]: the other axis that shows a shift of hue."""
    return ((images[:, 0] + images[:, 1]) / 2 - images[:, 2]).mean((1, 2))


def clipped_highlights(images: Tensor) -> Tensor:
    """Share of pixels that are white in all three channels (250 of 255 or more), in [0, 1]."""
    return (images.amin(1) >= CLIPPED).float().mean((1, 2))


def high_frequency_energy(images: Tensor) -> Tensor:
    """Share of the luminance's energy at frequencies of a quarter cycle per pixel or higher, in [0, 1].

    The mean luminance is excluded. An image of one colour scores 0.
    """
    power = _power(_luminance(images))
    rows, columns = _frequencies(power)
    fine = torch.maximum(rows.abs()[:, None], columns.abs()[None, :]) >= HIGH_FREQUENCY
    return _share(power, fine)


def grid_energy(images: Tensor) -> Tensor:
    """Share of the edges' energy that repeats every 16 pixels along an axis, in [0, 1].

    Edges are the second differences of the luminance, which flatten the spectrum of natural images. A grid is their
    energy at the harmonics of one cycle per 16 pixels that is constant along the other axis.
    """
    luminance = _luminance(images)
    height, width = (side - side % GRID_PIXELS for side in luminance.shape[1:])
    cut = luminance[:, :height, :width]
    edges = 4 * cut - sum(cut.roll(step, axis) for axis in (1, 2) for step in (-1, 1))
    power = _power(edges)
    rows, columns = (_is_harmonic(frequency) for frequency in _frequencies(power))
    mask = torch.zeros(power.shape[1:], dtype=torch.bool, device=power.device)
    mask[rows, 0] = True
    mask[0, columns] = True
    return _share(power, mask)


def _luminance(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMINANCE, device=images.device, dtype=images.dtype)
    return torch.einsum("kchw,c->khw", images, weights)


def _power(planes: Tensor) -> Tensor:
    power: Tensor = torch.fft.fft2(planes - planes.mean((1, 2), keepdim=True)).abs().square()
    return power


def _frequencies(power: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies of a spectrum's rows and columns, in cycles per pixel."""
    height, width = power.shape[1:]
    return torch.fft.fftfreq(height, device=power.device), torch.fft.fftfreq(width, device=power.device)


def _is_harmonic(frequencies: Tensor) -> Tensor:
    cycles = frequencies * GRID_PIXELS
    return (cycles.round() != 0) & ((cycles - cycles.round()).abs() < ROUNDING)


def _share(power: Tensor, mask: Tensor) -> Tensor:
    # the threshold is a hundred times the rounding error of a flat image's spectrum
    total = power.sum((1, 2))
    least = 1e-8 * power.shape[1] * power.shape[2]
    return torch.where(total > least, power[:, mask].sum(1) / total.clamp_min(least), torch.zeros_like(total))
