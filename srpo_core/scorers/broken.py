"""Which single images are broken: they no longer fit their prompt, or they look like none of the base's images.

There is one definition, for the gate and for the alarm during training. Everything here is a pure function of tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from srpo_core.scorers.image_statistics import (
    brightness,
    channel_agreement,
    contrast,
    log_detail,
    log_high_frequency,
    patch_seams,
    saturation,
)

STATISTICS: Final = (
    log_detail,
    log_high_frequency,
    channel_agreement,
    contrast,
    brightness,
    saturation,
    patch_seams,
)
LEAST_FIT: Final = 0.5  # halfway between an image of another prompt and the base's images
WIDENED: Final = 0.5  # of the base's range, on each side
LEAST_GAP: Final = 1.0  # deviations by which the base's images fit their prompt better than images of others


@dataclass(frozen=True)
class Scores:
    """What one scorer sees: the score of an image for a text is the product of their rows.

    images: (P, E), one row per image; texts: (P, E), the row of the image's prompt.
    """

    images: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Evidence:
    """What decides about P images.

    prompts: (P,) the number of each image's prompt, the same for two models; scores: by one or more scorers;
    statistics: (P, len(STATISTICS)), see `statistics`.
    """

    prompts: Tensor
    scores: Sequence[Scores]
    statistics: Tensor


def statistics(images: Tensor) -> Tensor:
    """Compute the image statistics of images (P, 3, H, W) in [0, 1], (P, len(STATISTICS))."""
    return torch.stack([statistic(images) for statistic in STATISTICS], 1)


def fit(own: Scores, prompts: Tensor, base: Scores, base_prompts: Tensor) -> Tensor:
    """Compute how well each image fits its prompt by one scorer, (P,): 1 like the base's images, 0 like another prompt's.

    (s - m) / (o - m), where s is the image's score, o the mean score of the base's images of this prompt, and m the mean
    score, for the same text, of the base's images of other prompts. NaN where o is not at least LEAST_GAP deviations of
    the others' scores above m: there the scorer does not tell the base's own images from others.

    prompts: (P,), base_prompts: (B,); every prompt of `prompts` is among the base's, which has two or more.
    """
    numbers, first = _first_rows(base_prompts)
    scores = base.images @ base.texts[first].T  # (B, N)
    is_own = base_prompts[:, None] == numbers[None, :]
    mean_own = _mean(scores, is_own)
    mean_other = _mean(scores, ~is_own)
    spread = _mean((scores - mean_other).square(), ~is_own).sqrt()
    gap = mean_own - mean_other
    gap = torch.where(gap > LEAST_GAP * spread, gap, torch.full_like(gap, torch.nan))
    place = torch.searchsorted(numbers, prompts)
    own_scores = (own.images * own.texts).sum(1)
    return (own_scores - mean_other[place]) / gap[place]


def outside(own: Tensor, base: Tensor) -> Tensor:
    """Which images (P,) have a statistic outside the range of the base's, widened by half its width on each side.

    own: (P, S), base: (B, S). A statistic that is not a finite number is outside.
    """
    least, greatest = base.amin(0), base.amax(0)
    margin = WIDENED * (greatest - least)
    return ~((own >= least - margin) & (own <= greatest + margin)).all(1)


def faults(own: Evidence, base: Evidence) -> Tensor:
    """Which images (P, F) are broken by which criterion: the fit by each scorer, then the statistics.

    A fit that is not a finite number although the scorer can tell the base's images apart is broken.
    """
    pairs = list(zip(own.scores, base.scores, strict=True))
    found = []
    for ours, theirs in pairs:
        fits = fit(ours, own.prompts, theirs, base.prompts)
        damaged = ~(ours.images * ours.texts).sum(1).isfinite()
        found.append((fits < LEAST_FIT) | damaged)
    return torch.stack([*found, outside(own.statistics, base.statistics)], 1)


def broken(own: Evidence, base: Evidence) -> Tensor:
    """Which images (P,) are broken by any criterion; see `faults`."""
    return faults(own, base).any(1)


def lost(own: Evidence, base: Evidence) -> Tensor:
    """Which images (P,) are broken by a criterion by which the base's image of the same row is not: what was lost.

    own and base: the same P images, from the same prompts and the same noise. What the base itself cannot do is no
    fault of the model.
    """
    return (faults(own, base) & ~faults(base, base)).any(1)


def _first_rows(prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the prompts' numbers in ascending order, and the first row of each."""
    numbers, places = torch.unique(prompts, return_inverse=True)
    rows = torch.arange(len(prompts), device=prompts.device)
    first = torch.full_like(numbers, len(prompts)).scatter_reduce(0, places, rows, "amin")
    return numbers, first


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average values (B, N) over the rows where the mask is true, (N,)."""
    return (values * mask).sum(0) / mask.sum(0)
