"""The paired bootstrap over prompts: all columns of figures on the same resamples, stratified by style.

Prompts are resampled, not images, because several seeds of one prompt are not independent evidence. Each style keeps
its number of prompts, because scores differ more between styles than between models. Efron and Tibshirani 1993,
chapters 6 and 13.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS_AT_ONCE: Final = 2**22
MIN_FREEDOM: Final = 5  # with fewer, no percentile of the draws is far enough out
MIN_BEYOND: Final = (
    5  # resamples beyond a bound of an interval; with fewer, the bound depends on single draws
)


@dataclass(frozen=True)
class Sample:
    """Number of resampled prompts, and of the styles that they belong to."""

    num_prompts: int
    num_strata: int

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the variance within the styles."""
        return self.num_prompts - self.num_strata


def resampled_means(
    columns: Floats, strata: Sequence[str], *, resamples: int, generator: Generator
) -> Floats:
    """Compute the means of the columns (N, C) over `resamples` samples of the N prompts, (resamples, C).

    A sample draws, with replacement, as many prompts of each stratum (N,) as there are. All columns use the same
    samples, so their means stay paired.
    """
    names, codes = np.unique(np.asarray(strata), return_inverse=True)
    sums = np.zeros((resamples, columns.shape[1]))
    for code in range(len(names)):
        own = columns[codes == code]
        at_once = max(1, DRAWS_AT_ONCE // len(own))
        for start in range(0, resamples, at_once):
            part = sums[start : start + at_once]
            part += _drawn_counts(len(own), len(part), generator) @ own
    return sums / len(columns)


def percentile_interval(draws: Floats, sample: Sample, *, confidence: float) -> tuple[float, float]:
    """Compute the bounds of the two-sided interval of a statistic from its bootstrap draws (R,).

    The percentiles are further out than the nominal ones, because plain percentile intervals are too narrow: by
    sqrt((N-S)/N), and by using the normal distribution instead of Student's t. Hesterberg 2015, section 4.1,
    "expanded percentile". The interval is (NaN, NaN) if `why_no_interval` returns a reason.
    """
    from scipy.special import stdtrit

    if why_no_interval(sample, resamples=len(draws), confidence=confidence):
        return float("nan"), float("nan")
    freedom = sample.freedom
    student = -float(stdtrit(freedom, (1 - confidence) / 2))
    tail = NormalDist().cdf(-student * (sample.num_prompts / freedom) ** 0.5)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def why_no_interval(sample: Sample, *, resamples: int, confidence: float) -> str:
    """Why there are too few prompts or resamples for a reliable interval, in words; empty if there are enough."""
    if sample.freedom < MIN_FREEDOM:
        return (
            f"{sample.num_prompts} prompts of {sample.num_strata} styles are too few for an interval: raise "
            f"evaluate.num_prompts to {sample.num_strata + MIN_FREEDOM} or more"
        )
    beyond = (1 - confidence) / 2
    least = math.ceil(round(MIN_BEYOND / beyond, 6))
    if resamples < least:
        return (
            f"{resamples} resamples are too few for an interval of {100 * confidence:.3g}%: raise gate.resamples "
            f"to {least} or more"
        )
    return ""


def per_rule_confidence(confidence: float, num_rules: int) -> float:
    """Confidence of each of `num_rules` intervals if any one of them may decide (Bonferroni).

    The chance that at least one of them misses the true value is then at most 1 - confidence. Rules that must all
    hold need no correction: a bad model passes only if the strictest rule errs.
    """
    return 1 - (1 - confidence) / max(1, num_rules)


def _drawn_counts(size: int, rows: int, generator: Generator) -> Floats:
    """Count how often each of `size` prompts is drawn in each of `rows` samples of that size, (rows, size)."""
    drawn = generator.integers(0, size, size=(rows, size))
    drawn += np.arange(rows)[:, None] * size
    counts = np.bincount(drawn.ravel(), minlength=rows * size)
    return counts.reshape(rows, size).astype(np.float64)
