"""Small charts as inline SVG. Colours come from the page's style sheet, so both colour schemes work."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.report.numbers import plain
from srpo_core.report.templates import render

WIDTH, HEIGHT = 340.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 16.0, 36.0
INSET = 8.0
DOTTED_UP_TO = 24
BAR_WIDTH, BAR_HEIGHT, BAR_EDGE = 220.0, 30.0, 8.0

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """One line: points (x, y) in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """One SVG element: its tag, its class, its lengths by attribute, and the points or the words that it has.

    title: shown when the pointer is over it; href: where it links to.
    """

    tag: str
    name: str
    lengths: Mapping[str, float] = field(default_factory=dict)
    points: Sequence[tuple[float, float]] = ()
    words: str | None = None
    anchor: str = ""
    title: str = ""
    href: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line at x, with a label."""

    x: float
    label: str


@dataclass(frozen=True)
class Level:
    """A horizontal line at y, with a label."""

    y: float
    label: str


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose about `count` round numbers, 1, 2 or 5 times a power of ten apart, that span low to high."""
    if low == high:
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    mark: Mark | None = None,
    level: Level | None = None,
    powers: bool = False,
) -> Markup:
    """Draw lines over a common axis; `mark` marks one x and labels it with the first line's value.

    level: a y to compare the lines with; powers: the y are powers of ten.
    """
    points = [point for line in series for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ys += [] if level is None else [level.y]
    y_ticks = power_ticks(min(ys), max(ys)) if powers else nice_ticks(min(ys), max(ys))
    first, last = min(xs), max(xs)
    x_ticks = [tick for tick in nice_ticks(first, last, 5) if first <= tick <= last and tick == int(tick)]
    across = scale(first, last, LEFT + INSET, WIDTH - RIGHT)
    upward = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_horizontal_axis(x_ticks, across, x_label), *_vertical_axis(y_ticks, upward, powers=powers)]
    if level is not None:
        parts += [
            line_part("threshold", LEFT, upward(level.y), WIDTH - RIGHT, upward(level.y)),
            text_part("chosen-value", LEFT + INSET, upward(level.y) - 5, "start", level.label),
        ]
    if mark is not None:
        parts.append(line_part("mark", across(mark.x), TOP, across(mark.x), HEIGHT - BOTTOM))
    for number, line in enumerate(series):
        parts += _curve(line, number, across, upward)
    if mark is not None:
        parts += _marked_point(mark, series[0], across, upward)
    return svg_of("chart", WIDTH, HEIGHT, label, parts)


def interval_bar(rule: Mapping[str, Any]) -> Markup:
    """Draw one gate rule: its interval, its value, the range that it allows, and a dotted line at no change."""
    known = [rule[key] for key in ("low", "value", "high") if rule[key] is not None]
    neutral = _neutral(rule)
    edges = _edges(rule, neutral)
    span = [*known, *([] if neutral is None else [neutral]), *edges]
    pad = (max(span) - min(span)) * 0.12 or 0.1
    across = scale(min(span) - pad, max(span) + pad, BAR_EDGE, BAR_WIDTH - BAR_EDGE)
    middle = BAR_HEIGHT / 2
    places = [across(edge) for edge in edges]
    start = 0.0 if rule["side"] == "at_most" else places[0]
    end = BAR_WIDTH if rule["side"] == "at_least" else places[-1]
    state = "good" if rule["passed"] else "bad"
    parts = [
        Part(
            "rect",
            "allowed",
            {"x": start, "y": 2.0, "width": end - start, "height": BAR_HEIGHT - 4, "rx": 2.0},
        ),
        *(
            []
            if neutral is None
            else [line_part("zero", across(neutral), 2, across(neutral), BAR_HEIGHT - 2)]
        ),
        *(line_part("threshold", place, 2, place, BAR_HEIGHT - 2) for place in places),
    ]
    if rule["low"] is not None:
        parts.append(
            line_part(f"interval {state}", across(rule["low"]), middle, across(rule["high"]), middle)
        )
    if rule["value"] is not None:
        parts.append(Part("circle", f"value {state}", {"cx": across(rule["value"]), "cy": middle, "r": 4.5}))
    return svg_of("bar", BAR_WIDTH, BAR_HEIGHT, f"{rule['name']}: {rule['reason']}", parts)


def _neutral(rule: Mapping[str, Any]) -> float | None:
    """The figure of two equal models; None if the rule compares with no model."""
    neutral = COMPARISONS[rule["compare"]].neutral
    return None if math.isnan(neutral) else neutral


def _edges(rule: Mapping[str, Any], neutral: float | None) -> list[float]:
    """The figures at which the allowed range begins or ends."""
    if rule["side"] != "within":
        return [rule["margin"]]
    assert neutral is not None, "the side within needs a comparison with a model"
    return [neutral - rule["margin"], neutral + rule["margin"]]


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the function that maps low to start and high to end."""
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _horizontal_axis(ticks: Sequence[float], across: Scale, label: str) -> list[Part]:
    base = HEIGHT - BOTTOM
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        line_part("axis", LEFT, base, WIDTH - RIGHT, base),
        *(text_part("tick", across(tick), base + 14, "middle", f"{tick:g}") for tick in ticks),
        text_part("label", middle, HEIGHT - 6, "middle", label),
    ]


def power_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose at most about `count` whole powers of ten that span low to high."""
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    step = math.ceil((last - first) / count)
    return [float(tick) for tick in range(first, last + step, step)]


def _vertical_axis(ticks: Sequence[float], upward: Scale, *, powers: bool) -> list[Part]:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))

    def words(tick: float) -> str:
        return f"{10**tick:g}" if powers else plain(tick, digits)

    return [
        part
        for tick in ticks
        for part in (
            line_part("rule", LEFT, upward(tick), WIDTH - RIGHT, upward(tick)),
            text_part("tick", LEFT - 6, upward(tick) + 3.5, "end", words(tick)),
        )
    ]


def _curve(line: Series, number: int, across: Scale, upward: Scale) -> list[Part]:
    places = [(across(x), upward(y)) for x, y in line.points]
    parts = [Part("polyline", f"line line-{number}", points=places)]
    if len(places) <= DOTTED_UP_TO:
        parts += [Part("circle", f"dot dot-{number}", {"cx": x, "cy": y, "r": 2.6}) for x, y in places]
    return parts


def _marked_point(mark: Mark, line: Series, across: Scale, upward: Scale) -> list[Part]:
    values = dict(line.points)
    if mark.x not in values:
        return []
    x, y = across(mark.x), upward(values[mark.x])
    left = x > WIDTH / 2
    # put the label on the side that the line does not cross
    above = _rises_at(mark.x, line) == left
    place = (x - 8 if left else x + 8, max(y - 8, TOP) if above else min(y + 17, HEIGHT - BOTTOM - 4))
    label = f"{mark.label} {plain(values[mark.x])}"
    return [
        Part("circle", "chosen", {"cx": x, "cy": y, "r": 5.0}),
        text_part("chosen-value", *place, "end" if left else "start", label),
    ]


def _rises_at(x: float, line: Series) -> bool:
    ys = [y for at, y in line.points if at <= x][-2:], [y for at, y in line.points if at >= x][:2]
    return ys[1][-1] >= ys[0][0]


def line_part(name: str, x1: float, y1: float, x2: float, y2: float) -> Part:
    """Make a line."""
    return Part("line", name, {"x1": x1, "y1": y1, "x2": x2, "y2": y2})


def text_part(name: str, x: float, y: float, anchor: str, words: str) -> Part:
    """Make a text that is anchored at a point."""
    return Part("text", name, {"x": x, "y": y}, words=words, anchor=anchor)


def svg_of(name: str, width: float, height: float, label: str, parts: Sequence[Part]) -> Markup:
    """Make an SVG of the class `name`."""
    return render("svg.html.j2", name=name, width=width, height=height, label=label, parts=parts)
