"""Sequential tests by betting: evidence against "the mean excess is at most 0" that may be read after every evaluation.

A gambler bets on the excess of every image. While the null hypothesis is true no bet gains on average, so by Ville's
inequality the wealth ever reaches 1/alpha with a chance of at most alpha, however often it is read. Waudby-Smith and
Ramdas 2024 (betting on bounded means), Shekhar and Ramdas 2023 (start times).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LARGEST: Final = 500.0  # logarithm; more wealth would overflow and proves nothing more
# Shares of the largest possible bet, fixed in advance. Small ones find a small excess, large ones a large one soon.
SHARES: Final = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)


def log_growth(excess: Floats, lowest: float) -> Floats:
    """Compute by how much one evaluation multiplies the wealth, as logarithms, for each of `SHARES`.

    excess: (N,), independent of each other given the past, each at least `lowest`, which is negative. If their mean
    expectation is at most 0, the expected factor is at most 1, also if single ones have a higher expectation: the
    product of 1 + b·E[excess_i] is at most (1 + b·mean)^N.
    """
    bets = np.array(SHARES) / -lowest
    factors: Floats = np.log1p(bets[:, None] * np.maximum(excess, lowest)).sum(1)
    return factors


def evidence(growth: Sequence[Sequence[float]] | Floats, planned: int) -> Floats:
    """Compute the wealth after each evaluation, (T,), on average over `SHARES` and over the starts of the betting.

    growth: (T, S) from `log_growth`, in order; planned: number of evaluations of a whole run. A gambler who bets from
    the first evaluation on has lost much before a late fault begins, so 1/planned of the wealth is put aside for a
    start at each evaluation; what has not started yet counts as it is.
    """
    steps = np.asarray(growth, dtype=np.float64).reshape(-1, len(SHARES))
    assert len(steps) <= planned, "more evaluations than planned"
    found = []
    wealth = np.empty((0, len(SHARES)))  # logarithms, by start
    for now in steps:
        wealth = np.vstack([wealth, np.zeros(len(SHARES))]) + now
        started = np.exp(np.minimum(wealth, LARGEST)).mean(1).sum()
        found.append((started + planned - len(wealth)) / planned)
    return np.array(found)
