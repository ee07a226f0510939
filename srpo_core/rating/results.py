"""The results of rated tasks: win rates, shares of excellent images, strengths of models, agreement, raters; all with intervals.

Plain items count; repeats and checks measure raters. Answers of raters who fail the checks count less (`raters.py`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from srpo_core.errors import DataError
from srpo_core.rating import bradley_terry
from srpo_core.rating.agreement import agreements
from srpo_core.rating.bradley_terry import Strength
from srpo_core.rating.clustered import anytime, estimate, mean_interval, rate_interval
from srpo_core.rating.raters import Rater, rate_raters, weights
from srpo_core.rating.records import DIMENSIONS, PAIRED, PAIRED_ANSWERS, PLAIN, Rating, dimensions_of

ALL_STYLES: Final = "all"
EXCELLENT: Final = "excellent"
_WON: Final = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
_SEVERAL: Final = 3  # models, from which on Bradley-Terry says more than a win rate


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    items: that each rater sees; raters: planned; complete: raters who have answered all items; looked_early: whether anybody has
    seen results before the planned end.
    """

    items: int
    raters: int
    complete: int
    looked_early: bool = False

    @property
    def ended(self) -> bool:
        """Whether as many raters as planned have answered every item."""
        return self.complete >= self.raters


@dataclass(frozen=True)
class Figure:
    """A figure with its interval, NaN without one, and the number of answers, raters and prompts that it is made of."""

    value: float
    low: float
    high: float
    answers: int
    raters: int
    prompts: int


@dataclass(frozen=True)
class WinRate:
    """How often `model` wins against `other`, a tie and "both bad" count half; counts: of the answers as they were given."""

    model: str
    other: str
    style: str
    figure: Figure
    counts: dict[str, int]


@dataclass(frozen=True)
class ExcellentRate:
    """The share of a model's images that are rated excellent; with `other`, how much larger it is than that of `other`."""

    model: str
    other: str
    dimension: str
    style: str
    figure: Figure


@dataclass(frozen=True)
class Results:
    """What people found.

    widened: by how much the intervals are wider because results were seen before the planned end; 1 if they were not.
    strengths: only of three models or more; no_strengths: why there are none, in words. agreement: alpha by dimension, with
    its interval.
    """

    protocol: str
    confidence: float
    widened: float
    raters: dict[str, Rater]
    win_rates: list[WinRate]
    excellent: list[ExcellentRate]
    strengths: list[Strength]
    no_strengths: str
    agreement: dict[str, tuple[float, float, float]]

    def as_json(self) -> dict[str, Any]:
        """Return the results for JSON, without the names of raters; figures that could not be computed are null."""
        found = asdict(self)
        del found["raters"]
        found["raters"] = [
            {key: value for key, value in asdict(rater).items() if key != "name"}
            for rater in sorted(self.raters.values(), key=lambda one: (-one.weight, one.name))
        ]
        return {key: _without_nan(value) for key, value in found.items()}


def require_end(progress: Progress, *, early: bool) -> None:
    """Refuse results before the planned end, unless they are asked for with intervals that are valid at any time.

    Raises:
        DataError: fewer raters than planned have answered every item.
    """
    if not progress.ended and not early:
        raise DataError(
            f"{progress.complete} of {progress.raters} planned raters have answered all {progress.items} items, and results "
            "are shown at the planned end: wait for the others, or add --early for wider intervals, which hold at any time"
        )


def widening(ratings: Iterable[Rating], progress: Progress, *, confidence: float) -> float:
    """Return by how much the intervals are widened: 1 if results are seen for the first time at the planned end."""
    if progress.ended and not progress.looked_early:
        return 1.0
    answered = len({(one.task, one.rater, one.item) for one in ratings})
    return anytime(max(answered, 1) / (progress.items * progress.raters), confidence)


def summarize(
    ratings: Sequence[Rating], *, confidence: float = 0.95, widened: float = 1.0, models: Sequence[str] = ()
) -> Results:
    """Compute the results of the answers of one protocol.

    models: their order, the one that is judged first; without it that of the first model of each pair, and the names' order with
    levels.

    Raises:
        DataError: there is no plain answer, or the answers are of several protocols.
    """
    protocols = sorted({one.protocol for one in ratings})
    plain = [one for one in ratings if one.kind == PLAIN]
    if not plain or len(protocols) > 1:
        found = " and ".join(protocols) if plain else "no answer to a plain item"
        raise DataError(f"results are of tasks with one protocol and at least one answer: there is {found}")
    raters = rate_raters(ratings)
    table = _Table(plain, weights(raters), confidence, widened, tuple(models))
    paired = protocols[0] == PAIRED
    strengths, why = _strengths(table) if paired else ([], "")
    return Results(
        protocol=protocols[0],
        confidence=confidence,
        widened=widened,
        raters=raters,
        win_rates=_win_rates(table) if paired else [],
        excellent=[] if paired else _excellent_rates(table),
        strengths=strengths,
        no_strengths=why,
        agreement=dict(agreements(ratings, confidence=confidence)),
    )


@dataclass(frozen=True)
class _Table:
    """Plain answers, the weights of their raters, and what intervals are wanted."""

    answers: Sequence[Rating]
    weights: dict[str, float]
    confidence: float
    widened: float
    models: tuple[str, ...]

    def place(self, model: str) -> tuple[int, str]:
        """Return the place of a model in the order of the models."""
        return (self.models.index(model) if model in self.models else len(self.models)), model

    def figure(self, chosen: Sequence[Rating], values: Sequence[float], *, is_rate: bool) -> Figure:
        """Estimate the mean of values (N,) of the chosen answers (N,), a rate or a difference of rates."""
        found = estimate(
            np.array(values, dtype=np.float64),
            np.array([self.weights[one.rater] for one in chosen]),
            [one.rater for one in chosen],
            [one.prompt for one in chosen],
        )
        low, high = (
            rate_interval(found, self.confidence, widened=self.widened)
            if is_rate
            else mean_interval(found, self.confidence, bounds=(-1.0, 1.0), widened=self.widened)
        )
        return Figure(found.mean, low, high, len(chosen), found.raters, found.prompts)

    def by_style(self, chosen: Sequence[Rating]) -> list[tuple[str, list[Rating]]]:
        """Return all answers, and those of each style if there are several."""
        styles = sorted({one.style for one in chosen})
        parts = [(style, [one for one in chosen if one.style == style]) for style in styles]
        return [(ALL_STYLES, list(chosen)), *(parts if len(parts) > 1 else [])]


def _win_rates(table: _Table) -> list[WinRate]:
    found = []
    for model, other in _pairs(table):
        both = [one for one in table.answers if {one.first, one.second} == {model, other}]
        for style, chosen in table.by_style(both):
            values = [_WON[one.answer] if one.first == model else 1 - _WON[one.answer] for one in chosen]
            counts = Counter(_of_model(one, model) for one in chosen)
            figure = table.figure(chosen, values, is_rate=True)
            found.append(
                WinRate(model, other, style, figure, {word: counts[word] for word in PAIRED_ANSWERS})
            )
    return found


def _pairs(table: _Table) -> list[tuple[str, str]]:
    """Return each pair of models once, the one that is judged first."""
    given = sorted({(one.first, one.second) for one in table.answers})
    known = [pair for pair in given if pair[::-1] not in given or pair < pair[::-1]]
    return [
        (model, other) if not table.models or table.place(model) < table.place(other) else (other, model)
        for model, other in known
    ]


def _of_model(one: Rating, model: str) -> str:
    """Return the answer as if `model` were the first one."""
    swapped = {"first": "second", "second": "first"}
    return one.answer if one.first == model else swapped.get(one.answer, one.answer)


def _excellent_rates(table: _Table) -> list[ExcellentRate]:
    models = sorted({one.first for one in table.answers}, key=table.place)
    found = []
    for dimension in DIMENSIONS:
        own = [one for one in table.answers if one.dimension == dimension]
        for model in models:
            for style, chosen in table.by_style([one for one in own if one.first == model]):
                values = [float(one.answer == EXCELLENT) for one in chosen]
                figure = table.figure(chosen, values, is_rate=True)
                found.append(ExcellentRate(model, "", dimension, style, figure))
        for model, other in combinations(models, 2):
            for style, chosen in table.by_style(_both_rated(own, model, other)):
                figure = _difference(table, chosen, other)
                found.append(ExcellentRate(model, other, dimension, style, figure))
    return found


def _both_rated(own: Sequence[Rating], model: str, other: str) -> list[Rating]:
    """Return the answers for two models by raters who rated the image of the same prompt and number of both."""
    rated = {(one.rater, one.prompt, one.sample, one.first) for one in own}
    return [
        one
        for one in own
        if one.first in (model, other)
        and {(one.rater, one.prompt, one.sample, name) for name in (model, other)} <= rated
    ]


def _difference(table: _Table, chosen: Sequence[Rating], other: str) -> Figure:
    """Estimate how much more often the images of one model are excellent, by the same raters for the same prompts."""
    theirs = {
        (one.rater, one.prompt, one.sample): one.answer == EXCELLENT for one in chosen if one.first == other
    }
    ours = [one for one in chosen if one.first != other]
    if not ours:
        nothing = float("nan")
        return Figure(nothing, nothing, nothing, 0, 0, 0)
    values = [
        float(one.answer == EXCELLENT) - float(theirs[one.rater, one.prompt, one.sample]) for one in ours
    ]
    return table.figure(ours, values, is_rate=False)


def _strengths(table: _Table) -> tuple[list[Strength], str]:
    """Fit Bradley-Terry to three models or more; return the strengths, or why there are none."""
    names = tuple(sorted({name for one in table.answers for name in (one.first, one.second)}))
    if len(names) < _SEVERAL:
        return [], ""
    pairs = bradley_terry.Pairs(
        names,
        np.array([names.index(one.first) for one in table.answers]),
        np.array([names.index(one.second) for one in table.answers]),
        np.array([_WON[one.answer] for one in table.answers]),
        np.array([table.weights[one.rater] for one in table.answers]),
        [one.rater for one in table.answers],
        [one.prompt for one in table.answers],
    )
    try:
        return bradley_terry.fit(pairs, confidence=table.confidence, widened=table.widened), ""
    except DataError as error:
        return [], str(error)


def complete_raters(ratings: Sequence[Rating], items: int) -> int:
    """Count the raters who have answered `items` items on every dimension."""
    answered = Counter((one.task, one.rater) for one in ratings)
    if not ratings:
        return 0
    return sum(count >= items * len(dimensions_of(ratings[0].protocol)) for count in answered.values())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
