"""Results as lines of text for a terminal, and the note that somebody has seen results before the planned end."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from srpo_core.rating.raters import Rater
from srpo_core.rating.results import ALL_STYLES, Figure, Results

SEEN: Final = "results-seen"  # in the directory of a task: its intervals stay wider


def has_been_seen(directory: Path) -> bool:
    """Whether results of a task were seen before its end."""
    return (directory / SEEN).exists()


def note_seen(directory: Path) -> None:
    """Note that results of a task are seen before its end."""
    (directory / SEEN).touch()


def result_lines(results: Results) -> Iterator[str]:
    """Yield the results as lines: figures with intervals, by style, strengths, agreement and raters."""
    percent = f"{100 * results.confidence:.3g}%"
    wider = ", wider because results were seen before the planned end" if results.widened > 1 else ""
    yield f"intervals of {percent}, for other raters and other prompts{wider}"
    for win in results.win_rates:
        counts = win.counts
        shown = f" ({counts['first']} won, {counts['second']} lost, {counts['tie']} ties, {counts['both_bad']} both bad)"
        place = "" if win.style == ALL_STYLES else f", {win.style}"
        yield f"{win.model} beats {win.other}{place}: {_rate(win.figure)}{shown}"
    for one in results.excellent:
        place = "" if one.style == ALL_STYLES else f", {one.style}"
        if one.other:
            yield f"{one.dimension}, {one.model} minus {one.other}{place}: {_difference(one.figure)}"
        else:
            yield f"{one.dimension}, {one.model} excellent{place}: {_rate(one.figure)}"
    for strength in results.strengths:
        yield f"strength of {strength.model}: {strength.value:+.2f}{_ends(strength.low, strength.high, '+.2f')}"
    if results.no_strengths:
        yield f"strengths: {results.no_strengths}"
    for dimension, (alpha, low, high) in results.agreement.items():
        value = "none" if math.isnan(alpha) else f"{alpha:.2f}{_ends(low, high, '.2f')}"
        yield f"agreement on {dimension} (Krippendorff's alpha): {value}"
    for rater in results.raters.values():
        yield _rater(rater)


def _rate(figure: Figure) -> str:
    return f"{figure.value:.1%}{_ends(figure.low, figure.high, '.1%')}"


def _difference(figure: Figure) -> str:
    return f"{figure.value:+.1%}{_ends(figure.low, figure.high, '+.1%')}"


def _ends(low: float, high: float, how: str) -> str:
    if math.isnan(low):
        return " (too few raters or prompts for an interval)"
    return f" ({low:{how}} … {high:{how}})"


def _rater(rater: Rater) -> str:
    left = f", {rater.left} of {rater.sided} left" if rater.sided else ""
    why = f"; reported: {'; '.join(rater.reasons)}" if rater.reasons else ""
    return (
        f"rater {rater.name}: {rater.answers} answers, {rater.checks_right} of {rater.checks} obvious items right, "
        f"{rater.repeats_same} of {rater.repeats} repeats the same{left}, {rater.seconds:.1f} s each, weight "
        f"{rater.weight:.2f}{why}"
    )
