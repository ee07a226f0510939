"""Figures without resampling: shares with an exact interval, and figures of all images together.

A share of rare images says little by its bootstrap: if no image of a sample is broken, none is in any resample. The
interval of Clopper and Pearson (1934) is exact for every share and every number of images.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.gates.bootstrap import Floats

Integers = NDArray[np.int64]

MOST: Final = 0.5  # a prompt counts from this share of its images


def upper_end(count: int, total: int, confidence: float) -> float:
    """Compute the upper end of the one-sided interval of a share of `count` in `total`: Clopper and Pearson 1934."""
    from scipy.special import betaincinv

    return 1.0 if count >= total else float(betaincinv(count + 1, total - count, confidence))


def lower_end(count: int, total: int, confidence: float) -> float:
    """Compute the lower end of the one-sided interval of a share of `count` in `total`: Clopper and Pearson 1934."""
    from scipy.special import betaincinv

    return 0.0 if count == 0 else float(betaincinv(count, total - count + 1, 1 - confidence))


def share_of_images(figures: Floats, prompt_index: Integers, confidence: float) -> tuple[float, float, float]:
    """Compute the share of images whose figure (P,) is 1, 0, and the exact upper end of this share.

    The interval is one-sided: the true share is at most its upper end, with the given confidence.
    """
    del prompt_index
    count = int(np.count_nonzero(figures > MOST))
    return count / len(figures), 0.0, upper_end(count, len(figures), confidence)


def share_of_prompts(
    figures: Floats, prompt_index: Integers, confidence: float
) -> tuple[float, float, float]:
    """Compute the share of prompts with the figure 1 in at least half of their images, 0, and its exact upper end.

    Images of one prompt that break together are one piece of evidence, so the prompts are counted here.
    """
    means = np.bincount(prompt_index, weights=figures) / np.bincount(prompt_index)
    count = int(np.count_nonzero(means >= MOST))
    return count / len(means), 0.0, upper_end(count, len(means), confidence)


def whole_figure(figures: Floats, prompt_index: Integers, confidence: float) -> tuple[float, float, float]:
    """Return a figure that all images have together three times: it has no interval, and its limit allows for chance.

    figures: (P,), all equal.
    """
    del prompt_index, confidence
    value = float(figures[0])
    return value, value, value
