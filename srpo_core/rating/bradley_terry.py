"""Strengths of several models from pairs: the model of Bradley and Terry 1952, in which a tie is half a win of each.

P(i beats j) = 1 / (1 + exp(s_j - s_i)), with the strengths s of mean 0. Intervals account for raters and prompts: each answer's
influence on a strength is treated as the answers are in `clustered`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.errors import DataError
from srpo_core.rating.clustered import Estimate, Floats, estimate, mean_interval

ITERATIONS: Final = 100
LEAST_MODELS: Final = 2
CONVERGED: Final = 1e-10
NULL: Final = 1e-9  # equal strengths of all models explain nothing, so one direction has no information


@dataclass(frozen=True)
class Pairs:
    """Comparisons of models: numbers of the models (N,), the value 1, ½ or 0 for `first`, weight, rater and prompt."""

    models: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    values: Floats
    weights: Floats
    raters: Sequence[str]
    prompts: Sequence[str]


@dataclass(frozen=True)
class Strength:
    """The strength of a model, of mean 0 over the models, with its interval; NaN without one."""

    model: str
    value: float
    low: float
    high: float


def fit(pairs: Pairs, *, confidence: float, widened: float = 1.0) -> list[Strength]:
    """Fit the strengths by maximum likelihood, the strongest model first.

    Raises:
        DataError: a group of models was never compared with the others, or won or lost every comparison with them, so that no
            finite strengths exist.
    """
    require_connected(pairs)
    strengths, information = _maximum_likelihood(pairs)
    covariance = np.linalg.pinv(information, rcond=NULL, hermitian=True)
    design = _design(pairs)
    residuals = pairs.weights * (pairs.values - _chance(design @ strengths))
    influence = (design * residuals[:, None]) @ covariance
    found = []
    total = pairs.weights.sum()
    for number, name in enumerate(pairs.models):
        # a weighted mean of these values is the strength, and has its variance
        values = strengths[number] + influence[:, number] * total / pairs.weights
        own: Estimate = estimate(values, pairs.weights, pairs.raters, pairs.prompts)
        low, high = mean_interval(own, confidence, widened=widened)
        found.append(Strength(name, float(strengths[number]), low, high))
    return sorted(found, key=lambda one: -one.value)


def require_connected(pairs: Pairs) -> None:
    """Raise `DataError` unless each model has won against each other one, directly or through others (Ford 1957)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    number = len(pairs.models)
    if number < LEAST_MODELS:
        raise DataError("Bradley-Terry needs comparisons of at least 2 models")
    won = pairs.values > 0
    lost = pairs.values < 1
    wins = [
        (winner, loser)
        for winner, loser in (
            *zip(pairs.first[won].tolist(), pairs.second[won].tolist(), strict=True),
            *zip(pairs.second[lost].tolist(), pairs.first[lost].tolist(), strict=True),
        )
    ]
    rows, columns = zip(*wins, strict=True) if wins else ((), ())
    graph = coo_matrix((np.ones(len(wins)), (rows, columns)), shape=(number, number))
    for connection, reason in (
        ("weak", "were never compared with"),
        ("strong", "won, or lost, every comparison with"),
    ):
        count, labels = connected_components(graph, directed=True, connection=connection)
        if count > 1:
            group = [name for name, label in zip(pairs.models, labels, strict=True) if label == labels[0]]
            others = [name for name, label in zip(pairs.models, labels, strict=True) if label != labels[0]]
            raise DataError(
                f"no finite strengths: {', '.join(group)} {reason} {', '.join(others)}; collect ratings of pairs across "
                "the two groups"
            )


def _design(pairs: Pairs) -> Floats:
    rows = np.arange(len(pairs.values))
    design = np.zeros((len(rows), len(pairs.models)))
    design[rows, pairs.first] = 1.0
    design[rows, pairs.second] = -1.0
    return design


def _chance(difference: Floats) -> Floats:
    from scipy.special import expit

    found: Floats = expit(difference)
    return found


def _maximum_likelihood(pairs: Pairs) -> tuple[Floats, Floats]:
    """Return the strengths and the matrix of Fisher's information, by Newton's method."""
    design = _design(pairs)
    strengths = np.zeros(len(pairs.models))
    for _ in range(ITERATIONS):
        chance = _chance(design @ strengths)
        information = (design * (pairs.weights * chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.pinv(information, rcond=NULL, hermitian=True) @ (
            design.T @ (pairs.weights * (pairs.values - chance))
        )
        strengths = strengths + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < CONVERGED:
            return strengths - strengths.mean(), information
    raise DataError(f"Bradley-Terry did not converge in {ITERATIONS} steps: collect more comparisons")
