"""Intervals for means of bounded figures, valid for rare losses: Gaffke's bound over prompts.

If 40 prompts lose nothing, every resample loses nothing, and the bootstrap calls a loss of 0 proven. But 1 prompt in 12
may be lost and not be among the 40. Gaffke's bound knows only that figures are within a range. It adds one prompt with
the worst possible figure, and draws the prompts' weights from the flat Dirichlet distribution. For figures that are 0
or 1 it is the interval of Clopper and Pearson. Gaffke 2005, "Three test statistics for a nonparametric one-sided
hypothesis on the mean of a nonnegative variable"; Learned-Miller and Thomas 2020, arXiv 1905.06208.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.random import Generator

from srpo_core.gates.bootstrap import DRAWS_AT_ONCE, Floats

Range = tuple[float, float]

DRAWS_PER_RESAMPLE: Final = 10  # they are cheap, and an end varies by 1 % instead of 4 % from seed to seed


def bounded_interval(
    columns: Floats,
    ranges: Sequence[Range],
    statistic: Callable[[list[Floats]], Floats],
    *,
    confidence: float,
    resamples: int,
    generator: Generator,
) -> tuple[float, float]:
    """Compute the bounds of the two-sided interval of a statistic of the means of the columns (N, C).

    ranges: the least and the greatest possible figure of each column; statistic: rises with the mean of the first
    column and falls with that of the second, if there is one. Columns of one prompt stay together.
    """
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    worst = np.array([ends[number % 2] for number, ends in enumerate(ranges)])
    best = np.array([ends[1 - number % 2] for number, ends in enumerate(ranges)])
    lows, highs = [], []
    at_once = max(1, DRAWS_AT_ONCE // len(rows))
    for start in range(0, DRAWS_PER_RESAMPLE * resamples, at_once):
        size = min(at_once, DRAWS_PER_RESAMPLE * resamples - start)
        # equal prompts share a weight: the sum of their exponential variables is a gamma variable
        weights = generator.gamma(counts, size=(size, len(rows)))
        added = generator.standard_exponential((size, 1))
        total = weights.sum(1, keepdims=True) + added
        inside = weights @ rows
        lows.append(statistic(list(((inside + added * worst) / total).T)))
        highs.append(statistic(list(((inside + added * best) / total).T)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(lows), tail), np.quantile(np.concatenate(highs), 1 - tail)
    return float(low), float(high)
