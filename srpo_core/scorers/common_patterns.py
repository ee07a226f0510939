"""Patterns that many images of a model share, and images that are copies of others, without a model.

A watermark, a frame or a dirty corner is small in each image and the same in all. The mean over all images shows it,
where the figure of a single image does not. Every function takes or returns plain tensors.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize, pad

from srpo_core.scorers.image_statistics import LUMINANCE, luminance

MOST_PIXELS: Final = 128  # larger images are reduced to this side before their edges are compared
FAINT: Final = 0.05  # second differences far below this do not count as a common edge
PERIODS: Final = (2, 4, 8)
TILE: Final = 64  # side of the tiles whose spectra are averaged
FINE: Final = 0.1  # cycles per pixel, from which a peak of the spectrum counts
AROUND: Final = 7  # side of the window whose median is the spectrum without its peaks
LEAST_POWER: Final = 1e-6
SMALL: Final = 64  # side at which images of any size are compared as copies
COPY: Final = 0.9  # cosine of the edges of two images, from which one is a copy


def edges(images: Tensor) -> Tensor:
    """Compute the second differences of images (K, 3, H, W), each channel, (K, 3, h - 2, w - 2), without the border.

    A side of more than MOST_PIXELS is reduced to it first.
    """
    height, width = (min(side, MOST_PIXELS) for side in images.shape[2:])
    small = images if images.shape[2:] == (height, width) else adaptive_avg_pool2d(images, (height, width))
    across = small[..., 1:-1, 2:] + small[..., 1:-1, :-2]
    down = small[..., 2:, 1:-1] + small[..., :-2, 1:-1]
    return 4 * small[..., 1:-1, 1:-1] - across - down


def outlines(images: Tensor) -> Tensor:
    """Compute the edges of images (K, 3, H, W) at one small size, by which copies are found, (K, 3, SMALL, SMALL)."""
    return edges(adaptive_avg_pool2d(images, (SMALL, SMALL)))


def shared_edges(found: Tensor, prompts: Tensor) -> Tensor:
    """Compute how alike the edges of different prompts are, one figure per image, (P,), whose mean is in [-1, 1].

    found: edges (P, ...); prompts: (P,) numbers 0 to N-1. The mean is that of the cosines between the edges of two
    prompts, averaged over the prompts' images. The figure of a prompt is its first-order influence on this mean, so that
    resampling prompts gives the mean the right variance.
    """
    unit = normalize(found.flatten(1).float(), dim=1)
    count = int(prompts.max()) + 1
    of_prompt = unit.new_zeros(count, unit.shape[1]).index_add_(0, prompts, unit)
    of_prompt /= torch.bincount(prompts, minlength=count)[:, None]
    total = of_prompt.sum(0)
    own = of_prompt.square().sum(1)
    mean = (total.square().sum() - own.sum()) / (count * (count - 1))
    influence = 2 * (of_prompt @ total - own) / (count - 1) - mean
    return influence[prompts]


def strongest_common_edge(found: Tensor) -> Tensor:
    """Compute how far the edge that most images share at one pixel is the same in all of them, a number in [0, 1].

    found: edges (P, 3, h, w). |mean| / sqrt(mean of squares) of the luminance's second difference at each pixel; 1 means
    that every image has the same edge there.
    """
    weights = torch.tensor(LUMINANCE, device=found.device, dtype=torch.float32)
    grey = torch.einsum("pchw,c->phw", found.float(), weights)
    strength: Tensor = grey.mean(0).abs() / (grey.square().mean(0) + FAINT**2).sqrt()
    return strength.max()


def phase_profile(images: Tensor) -> Tensor:
    """Compute the mean size of the luminance's steps by their place modulo 2, 4 and 8, along both axes, (K, 28).

    Resampling, and compression in blocks, make steps at some places larger than at others.
    """
    grey = luminance(images)
    profiles = []
    for axis in (1, 2):
        steps = grey.diff(dim=axis).abs().mean(3 - axis)  # (K, side - 1)
        for period in PERIODS:
            profiles += [steps[:, start::period].mean(1) for start in range(period)]
    return torch.stack(profiles, 1)


def uneven_phases(found: Tensor, base: Tensor) -> Tensor:
    """Compute by how much more the steps of a model's images depend on their place than the base's, a number.

    found, base: phase profiles (P, 28). For each axis and period: the largest mean step over the average, minus the
    same of the base. The largest of these differences is returned.
    """
    sizes = [*PERIODS, *PERIODS]
    ours, theirs = (
        torch.stack(
            [part.max() / part.mean().clamp_min(LEAST_POWER) for part in torch.split(one.mean(0), sizes)]
        )
        for one in (found.double(), base.double())
    )
    return (ours - theirs).max()


def log_spectrum(images: Tensor) -> Tensor:
    """Compute the logarithm of the luminance's power by frequency, averaged over tiles, (K, TILE * (TILE / 2 + 1)).

    An image smaller than a tile is padded with its mean.
    """
    grey = luminance(images)
    grey = grey - grey.mean((1, 2), keepdim=True)
    below, right = (max(0, TILE - side) for side in grey.shape[1:])
    tiles = (
        pad(grey, (0, right, 0, below)).unfold(1, TILE, TILE).unfold(2, TILE, TILE)
    )  # (K, n, m, TILE, TILE)
    line = torch.hann_window(TILE, device=images.device)
    power: Tensor = torch.fft.rfft2(tiles * line[:, None] * line[None, :]).abs().square()
    levels: Tensor = (power + LEAST_POWER).log().mean((1, 2))
    return levels.flatten(1)


def spectral_peak(found: Tensor, base: Tensor) -> Tensor:
    """Compute by how much one fine frequency stands out more than in the base's images, a number (a logarithm of power).

    found, base: log spectra (P, TILE * (TILE / 2 + 1)). The difference of the means, less its median over neighbouring
    frequencies.
    """
    change: Tensor = (found.double().mean(0) - base.double().mean(0)).view(TILE, TILE // 2 + 1)
    half = AROUND // 2
    wrapped = pad(change[None, None], (0, 0, half, half), mode="circular")
    padded = pad(wrapped, (half, half, 0, 0), mode="reflect")[0, 0]
    smooth = padded.unfold(0, AROUND, 1).unfold(1, AROUND, 1).flatten(2).median(2).values
    rows, columns = torch.fft.fftfreq(TILE), torch.fft.rfftfreq(TILE)
    fine = torch.maximum(rows.abs()[:, None], columns.abs()[None, :]) >= FINE
    return (change - smooth)[fine.to(change.device)].max()


def copies(found: Tensor, prompts: Tensor, base: Tensor, training: Tensor | None) -> Tensor:
    """Which images (P,) are copies of an image of another prompt, or of a training image.

    found, base: outlines (P, ...) of the same prompts and noise; prompts: (P,) numbers; training: outlines (T, ...), or
    None. Two images are copies if the cosine of their outlines exceeds COPY, also if one is mirrored, and the base's
    images of these rows are none.
    """
    others = prompts[:, None] != prompts[None, :]
    copied = (_alike(found) & ~_alike(base) & others).any(1)
    if training is not None and len(training):
        for known in (_unit(training), _unit(training.flip(-1))):
            copied |= (_unit(found) @ known.T > COPY).any(1) & ~(_unit(base) @ known.T > COPY).any(1)
    return copied


def repeats(found: Tensor, prompts: Tensor, base: Tensor) -> Tensor:
    """Which images (P,) repeat that of another seed of their prompt, where the base's images of these rows differ.

    found, base: outlines (P, ...); see `copies`.
    """
    same = prompts[:, None] == prompts[None, :]
    return (_alike(found) & ~_alike(base) & same).any(1)


def _alike(found: Tensor) -> Tensor:
    """Which pairs of different images (P, P) have outlines so alike that one is a copy."""
    unit, mirrored = _unit(found), _unit(found.flip(-1))
    alike = (unit @ unit.T > COPY) | (unit @ mirrored.T > COPY)
    return alike.fill_diagonal_(fill_value=False)


def _unit(found: Tensor) -> Tensor:
    return normalize(found.flatten(1).float(), dim=1)
