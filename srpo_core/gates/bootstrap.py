"""Bootstrap intervals of a mean over prompts."""

import numpy as np
from numpy.random import Generator

from srpo_core.gates.pairs import Floats

DRAWS_AT_ONCE = 2**22


def resampled_means(figures: Floats, resamples: int, generator: Generator) -> Floats:
    """Means of `resamples` samples of figures (N,), each drawn N times with replacement, (resamples,)."""
    count = len(figures)
    at_once = max(1, DRAWS_AT_ONCE // count)
    means = np.empty(resamples)
    for start in range(0, resamples, at_once):
        part = means[start : start + at_once]
        part[:] = figures[generator.integers(0, count, size=(len(part), count))].mean(axis=1)
    return means


def mean_interval(
    figures: Floats, *, confidence: float, resamples: int, generator: Generator
) -> tuple[float, float]:
    """Ends of the two-sided percentile interval of the mean of figures (N,).

    The unit that is resampled is what `figures` counts: prompts, so that several seeds of one prompt
    are not taken for independent evidence. One figure shows no spread, so its interval is (NaN, NaN).
    Source: Efron and Tibshirani 1993, chapter 13.
    """
    if len(figures) == 1:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    means = resampled_means(figures, resamples, generator)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
