"""What reward hacking does to pixels, without any model: colour, highlights, fine structure, grids.

Rewards have tastes that leak into images: HPSv2 likes red, PickScore purple, ImageReward over-exposure, and
images trained in patches may keep a pattern of the patches' size (Shen et al. 2025, section 4). Every
function takes images (K, 3, H, W) in [0, 1] and gives one figure per image, (K,).
"""

from typing import Final

import torch
from torch import Tensor

LUMINANCE: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601
CLIPPED: Final = 250 / 255
HIGH_FREQUENCY: Final = 0.25  # cycles per pixel: half of the finest that pixels can show
ROUNDING: Final = 1e-4  # of a frequency in cycles per 16 pixels
GRID_PIXELS: Final = 16  # a token of FLUX: two latents of eight pixels


def saturation(images: Tensor) -> Tensor:
    """Mean saturation of HSV, in [0, 1]: 0 is grey."""
    brightest, darkest = images.amax(1), images.amin(1)
    return ((brightest - darkest) / brightest.clamp_min(1e-6)).mean((1, 2))


def red_over_green(images: Tensor) -> Tensor:
    """Mean red less green, in [-1, 1]: one of the two axes on which a shift of hue shows.

    An angle of hue has no mean and none at all in grey, so the shift is measured as the change of the two
    opponent colours, of which this is one.
    """
    return (images[:, 0] - images[:, 1]).mean((1, 2))


def yellow_over_blue(images: Tensor) -> Tensor:
    """Mean of red and green less blue, in [-1, 1]: the other axis of a shift of hue."""
    return ((images[:, 0] + images[:, 1]) / 2 - images[:, 2]).mean((1, 2))


def clipped_highlights(images: Tensor) -> Tensor:
    """Share of pixels that are white in all three channels (250 of 255 or more), in [0, 1]."""
    return (images.amin(1) >= CLIPPED).float().mean((1, 2))


def high_frequency_energy(images: Tensor) -> Tensor:
    """Share of the luminance's energy that lies at a quarter cycle per pixel or finer, in [0, 1].

    Without the mean; an image of one colour has none, 0.
    """
    power = _power(_luminance(images))
    rows, columns = _frequencies(power)
    fine = torch.maximum(rows.abs()[:, None], columns.abs()[None, :]) >= HIGH_FREQUENCY
    return _share(power, fine)


def grid_energy(images: Tensor) -> Tensor:
    """Share of the edges' energy that repeats along an axis every 16 pixels, in [0, 1].

    Edges are the second differences of the luminance, which level the spectrum of natural images; their
    energy at the harmonics of one cycle per 16 pixels, constant along the other axis, is a grid.
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
    """Cycles per pixel of the rows and of the columns of a spectrum."""
    height, width = power.shape[1:]
    return torch.fft.fftfreq(height, device=power.device), torch.fft.fftfreq(width, device=power.device)


def _is_harmonic(frequencies: Tensor) -> Tensor:
    cycles = frequencies * GRID_PIXELS
    return (cycles.round() != 0) & ((cycles - cycles.round()).abs() < ROUNDING)


def _share(power: Tensor, mask: Tensor) -> Tensor:
    # a hundred times the rounding of a flat image's spectrum
    total = power.sum((1, 2))
    least = 1e-8 * power.shape[1] * power.shape[2]
    return torch.where(total > least, power[:, mask].sum(1) / total.clamp_min(least), torch.zeros_like(total))
