"""How far raters agree with each other: Krippendorff's alpha, nominal for pairs and ordinal for levels.

Alpha is 1 - D_o / D_e, the observed disagreement within items over that of answers paired by chance: 1 is perfect agreement,
0 is chance. Missing answers need no special care. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.rating.records import LEVEL_ANSWERS, PAIRED, PAIRED_ANSWERS, PLAIN, Rating

Floats = NDArray[np.float64]

RESAMPLES: Final = 1000


def alpha(units: Sequence[Sequence[int]], categories: int, *, ordinal: bool) -> float:
    """Compute Krippendorff's alpha.

    units: the answers to each item, as numbers from 0 to categories - 1. ordinal: whether their order counts. NaN if no item has
    two answers, or if all answers are equal.
    """
    coincidences = sum(
        (_coincidences(unit, categories) for unit in units), np.zeros((categories, categories))
    )
    return _alpha(coincidences, ordinal)


def alpha_interval(
    units: Sequence[Sequence[int]], categories: int, *, ordinal: bool, confidence: float, seed: int
) -> tuple[float, float]:
    """Compute the percentiles of alpha over resampled items; (NaN, NaN) if alpha cannot be computed."""
    tables = np.array([_coincidences(unit, categories) for unit in units]).reshape(-1, categories, categories)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES if len(tables) else 0):
        chosen = generator.integers(0, len(tables), len(tables))
        draws.append(_alpha(tables[chosen].sum(0), ordinal))
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def units_of(ratings: Sequence[Rating], dimension: str) -> list[list[int]]:
    """Return the answers of all raters to each plain item on a dimension, as numbers, in the order of the items' names."""
    by_item: dict[tuple[str, str], list[int]] = {}
    for one in ratings:
        if one.kind == PLAIN and one.dimension == dimension:
            choices = PAIRED_ANSWERS if one.protocol == PAIRED else LEVEL_ANSWERS
            by_item.setdefault((one.task, one.item), []).append(choices.index(one.answer))
    return [by_item[key] for key in sorted(by_item)]


def agreements(
    ratings: Sequence[Rating], *, confidence: float, seed: int = 0
) -> Mapping[str, tuple[float, float, float]]:
    """Compute alpha with its interval for each dimension of the answers, which have one protocol."""
    found = {}
    for dimension in sorted({one.dimension for one in ratings}):
        units = units_of(ratings, dimension)
        ordinal = ratings[0].protocol != PAIRED
        categories = len(LEVEL_ANSWERS)
        ends = alpha_interval(units, categories, ordinal=ordinal, confidence=confidence, seed=seed)
        found[dimension] = (alpha(units, categories, ordinal=ordinal), *ends)
    return found


def _coincidences(unit: Sequence[int], categories: int) -> Floats:
    """Count the ordered pairs of answers to an item, each divided by the number of its answers minus one."""
    counts = np.bincount(np.asarray(unit, dtype=np.int64), minlength=categories).astype(np.float64)
    if counts.sum() <= 1:
        return np.zeros((categories, categories))
    found: Floats = (np.outer(counts, counts) - np.diag(counts)) / (counts.sum() - 1)
    return found


def _alpha(coincidences: Floats, ordinal: bool) -> float:
    totals = coincidences.sum(0)
    number = totals.sum()
    distance = _distances(totals, ordinal)
    expected = (np.outer(totals, totals) * distance).sum()
    if number <= 1 or expected == 0:
        return float("nan")
    return float(1 - (number - 1) * (coincidences * distance).sum() / expected)


def _distances(totals: Floats, ordinal: bool) -> Floats:
    """Return the squared differences of all pairs of categories; ordinal ones depend on how often those between are used."""
    number = len(totals)
    if not ordinal:
        return 1.0 - np.eye(number)
    rank = np.cumsum(totals) - totals / 2
    found: Floats = (rank[:, None] - rank[None, :]) ** 2
    return found
