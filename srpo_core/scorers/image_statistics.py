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
LEAST_DETAIL: Final = 1e-6  # of a mean square: below the rounding of 8 bits
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
    power = _power(luminance(images))
    rows, columns = _frequencies(power)
    fine = torch.maximum(rows.abs()[:, None], columns.abs()[None, :]) >= HIGH_FREQUENCY
    return _share(power, fine)


def grid_energy(images: Tensor) -> Tensor:
    """Share of the edges' energy that repeats every 16 pixels along an axis, in [0, 1].

    Edges are the second differences of the luminance, which flatten the spectrum of natural images. A grid is their
    energy at the harmonics of one cycle per 16 pixels that is constant along the other axis.
    """
    grey = luminance(images)
    height, width = (side - side % GRID_PIXELS for side in grey.shape[1:])
    cut = grey[:, :height, :width]
    edges = 4 * cut - sum(cut.roll(step, axis) for axis in (1, 2) for step in (-1, 1))
    power = _power(edges)
    rows, columns = (_is_harmonic(frequency) for frequency in _frequencies(power))
    mask = torch.zeros(power.shape[1:], dtype=torch.bool, device=power.device)
    mask[rows, 0] = True
    mask[0, columns] = True
    return _share(power, mask)


def log_detail(images: Tensor) -> Tensor:
    """Logarithm of the mean squared second difference of the luminance, in [-14, 3]: how sharp the image is.

    A blur lowers it and noise raises it, by far more than the share of high frequencies. An image of one colour has the
    least figure.
    """
    return (_edges(luminance(images)).square().mean((1, 2)) + LEAST_DETAIL).log()


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the luminance over the pixels, in [0, 0.5]."""
    return luminance(images).std((1, 2), correction=0)


def brightness(images: Tensor) -> Tensor:
    """Mean luminance, in [0, 1]."""
    return luminance(images).mean((1, 2))


def log_high_frequency(images: Tensor) -> Tensor:
    """Logarithm of `high_frequency_energy`, in [-14, 0]."""
    return (high_frequency_energy(images) + LEAST_DETAIL).log()


def patch_seams(images: Tensor) -> Tensor:
    """Mean step of the luminance at multiples of 16 pixels over the mean step, in [0, 16]: 1 without seams.

    Patches that are out of order, or do not join, make steps between them. An image of one colour, or without two
    patches, scores 1.
    """
    grey = luminance(images)
    found = []
    for axis in (1, 2):
        steps = grey.diff(dim=axis).abs().mean(3 - axis)  # (K, side - 1)
        seams = steps[:, GRID_PIXELS - 1 :: GRID_PIXELS]
        mean = steps.mean(1)
        ratio = seams.mean(1) / mean.clamp_min(LEAST_DETAIL)
        found.append(torch.where((mean > LEAST_DETAIL) & (seams.shape[1] > 0), ratio, torch.ones_like(mean)))
    return torch.stack(found).mean(0)


def channel_agreement(images: Tensor) -> Tensor:
    """Mean cosine of the edges of red and green and of those of green and blue, in [-1, 1].

    Edges of objects are in all channels at the same places; coloured noise, a shifted channel and damaged latents have
    edges in one channel alone. An image of one colour has none to compare and scores 1.
    """
    edges = torch.stack([_edges(plane) for plane in images.unbind(1)], 1).flatten(2)
    norms = edges.norm(dim=2)
    red_green, green_blue = ((edges[:, i] * edges[:, i + 1]).sum(1) for i in (0, 1))
    least = LEAST_DETAIL**0.5 * edges.shape[2] ** 0.5
    flat = norms.amin(1) < least
    cosines = (
        red_green / (norms[:, 0] * norms[:, 1]).clamp_min(least**2)
        + green_blue / (norms[:, 1] * norms[:, 2]).clamp_min(least**2)
    ) / 2
    return torch.where(flat & (norms.amax(1) < least), torch.ones_like(cosines), cosines)


def _edges(planes: Tensor) -> Tensor:
    """Compute the second differences of planes (K, H, W); pixels beyond the border equal those on it."""
    padded = torch.nn.functional.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    neighbours = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
    return 4 * planes - neighbours


def luminance(images: Tensor) -> Tensor:
    """Compute the luminance of images (K, 3, H, W), (K, H, W)."""
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
