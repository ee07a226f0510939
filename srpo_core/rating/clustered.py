"""Intervals that account for raters and prompts: two answers of one rater, or of one prompt, are not independent.

The variance of a weighted mean over crossed raters and prompts is S_r + S_p - S_e: the parts between raters and between
prompts each contain the noise S_e, which so counts once (Searle, Casella and McCulloch 1992, chapter 5; Cameron, Gelbach and
Miller 2011 for incomplete tables). It is never less than the largest of S_r, S_p and S_e: raters who contradict each other
exactly have neither a part between raters nor one between prompts, and their answers vary still. Degrees of freedom are those of
Satterthwaite 1946, which decide with few raters. Rates use Wilson's interval of as many independent answers as give this
variance, with Student's t (Korn and Graubard 1998, Dean and Pavlou 2015).

In simulations with 3 to 10 raters and 20 to 60 prompts this covers the true rate at its nominal rate; the alternatives do not:
clusters of prompts alone cover far too little, and the t of min(raters, prompts) - 1 is nearly twice as wide with 3 raters
(tests/rating/test_clustered.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_RATERS: Final = 2
LEAST_PROMPTS: Final = 6
EQUAL: Final = 1e-12  # answers that differ by less are equal
NORMAL: Final = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A weighted mean and what is uncertain about it.

    variance: of the mean; NaN if nothing can be said about it. freedom: its degrees of freedom. raters, prompts: their numbers. constant: whether all answers are
    equal, so that the variance says nothing.
    """

    mean: float
    variance: float
    freedom: float
    raters: int
    prompts: int
    constant: bool = False

    @property
    def has_interval(self) -> bool:
        """Whether there are enough raters and prompts for an interval that holds for others, and a variance."""
        enough = self.raters >= LEAST_RATERS and self.prompts >= LEAST_PROMPTS
        return enough and math.isfinite(self.variance)


def estimate(values: Floats, weights: Floats, raters: Sequence[str], prompts: Sequence[str]) -> Estimate:
    """Estimate the weighted mean of values (N,) of raters (N,) and prompts (N,).

    Not every rater needs to have rated every prompt; several answers of one rater to a prompt count as their mean.
    """
    rater_names, rater = np.unique(np.asarray(raters), return_inverse=True)
    prompt_names, prompt = np.unique(np.asarray(prompts), return_inverse=True)
    num_raters, num_prompts = len(rater_names), len(prompt_names)
    cell = rater * num_prompts + prompt
    cell_weights = np.bincount(cell, weights, num_raters * num_prompts)
    used = np.flatnonzero(cell_weights)
    weight = cell_weights[used]
    value = np.bincount(cell, weights * values, num_raters * num_prompts)[used] / weight
    mean = float(weight @ value / weight.sum())
    share = weight / weight.sum()
    if min(num_raters, num_prompts) < LEAST_RATERS:
        return Estimate(mean, float("nan"), float("nan"), num_raters, num_prompts)
    own_rater, own_prompt = used // num_prompts, used % num_prompts
    of_raters = _between(share * (value - mean), own_rater, num_raters)
    of_prompts = _between(share * (value - mean), own_prompt, num_prompts)
    rest, freedom_of_rest = _interaction(value, share, own_rater, own_prompt)
    variance = max(of_raters + of_prompts - rest, of_raters, of_prompts, rest)
    constant = bool(np.ptp(value) < EQUAL)
    if constant:
        return Estimate(mean, 0.0, float("inf"), num_raters, num_prompts, constant=True)
    if variance < EQUAL**2:  # answers differ, and the parts say nothing about by how much
        return Estimate(mean, float("nan"), float("nan"), num_raters, num_prompts)
    # a table without cells to spare has no noise of its own: its part is then left in the other two
    noise = rest**2 / freedom_of_rest if freedom_of_rest else 0.0
    freedom = variance**2 / (of_raters**2 / (num_raters - 1) + of_prompts**2 / (num_prompts - 1) + noise)
    return Estimate(mean, variance, max(1.0, freedom), num_raters, num_prompts)


def rate_interval(found: Estimate, confidence: float, *, widened: float = 1.0) -> tuple[float, float]:
    """Compute the interval of a rate in [0, 1]; (NaN, NaN) with too few raters or prompts, or without a variance.

    widened: by how much the interval is wider than a single look needs (`anytime`).
    """
    if not found.has_interval:
        return float("nan"), float("nan")
    quantile = widened * _student(found.freedom, confidence)
    rate = min(1.0, max(0.0, found.mean))
    if found.constant or not 0 < rate < 1:
        unseen = unseen_share(found, confidence, widened)
        return max(0.0, rate - unseen), min(1.0, rate + unseen)
    number = rate * (1 - rate) / found.variance
    centre = (rate + quantile**2 / (2 * number)) / (1 + quantile**2 / number)
    half = math.sqrt(rate * (1 - rate) / number + (quantile / (2 * number)) ** 2)
    half *= quantile / (1 + quantile**2 / number)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(
    found: Estimate, confidence: float, *, bounds: tuple[float, float] | None = None, widened: float = 1.0
) -> tuple[float, float]:
    """Compute the interval of a mean, such as a difference of rates, by Student's t; (NaN, NaN) without enough for it.

    bounds: the least and the greatest possible value.
    """
    if not found.has_interval:
        return float("nan"), float("nan")
    low, high = bounds or (-math.inf, math.inf)
    half = widened * _student(found.freedom, confidence) * math.sqrt(found.variance)
    if found.constant:
        half = unseen_share(found, confidence, widened) * ((high - low) / 2 if bounds else 0.0)
    return max(low, found.mean - half), min(high, found.mean + half)


def unseen_share(found: Estimate, confidence: float, widened: float = 1.0) -> float:
    """Return the largest share of prompts with another answer of which no one is among those seen, at this confidence.

    The "rule of three": with 40 prompts that all have the same answer, up to 8.8 % may have another one (95 %).
    """
    tail = NORMAL.cdf(-widened * NORMAL.inv_cdf((1 + confidence) / 2))
    return float(1 - tail ** (1 / found.prompts))


def anytime(time: float, confidence: float) -> float:
    """Return by how much an interval must be wider if it is read after any share `time` in (0, 1] of the planned answers.

    The boundary is Robbins' normal mixture, whose intervals cover the true mean at all times at once (Waudby-Smith, Arbour,
    Sinha, Kennedy and Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence sequences", equation 1), with
    the parameter that is best at the planned end. It is the ratio to the quantile of a single look.
    """
    alpha = 1 - confidence
    root = -2 * math.log(alpha)
    scaled = time * (root + math.log(root) + 1)
    boundary = math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))
    return boundary / NORMAL.inv_cdf(1 - alpha / 2)


def _student(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    if math.isinf(freedom):
        return NORMAL.inv_cdf((1 + confidence) / 2)
    return float(stdtrit(freedom, (1 + confidence) / 2))


def _between(residuals: Floats, groups: NDArray[np.int64], number: int) -> float:
    sums = np.bincount(groups, residuals, number)
    return float(sums @ sums) * number / (number - 1)


def _interaction(
    values: Floats, shares: Floats, raters: NDArray[np.int64], prompts: NDArray[np.int64]
) -> tuple[float, int]:
    """Return the part of the variance that neither raters nor prompts explain, and its degrees of freedom."""
    root = np.sqrt(shares)
    columns = np.zeros((len(values), raters.max() + prompts.max() + 2))
    columns[np.arange(len(values)), raters] = root
    columns[np.arange(len(values)), raters.max() + 1 + prompts] = root
    solution, _, rank, _ = np.linalg.lstsq(columns, values * root, rcond=None)
    freedom = len(values) - int(rank)
    if freedom < 1:
        return 0.0, 0
    residuals = root * (values * root - columns @ solution)
    return float(residuals @ residuals) * len(values) / freedom, freedom
