"""The chart of a gate rule's figure over the versions of a model, as inline SVG."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from srpo_core.report.charts import (
    BOTTOM,
    HEIGHT,
    INSET,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Part,
    Scale,
    line_part,
    nice_ticks,
    scale,
    svg_of,
    text_part,
)
from srpo_core.report.numbers import MINUS, plain
from srpo_core.report.store_rows import RuleFigure

# With more versions than these an interval or a dot for each of them would be a smear.
INTERVALS_UP_TO = 48
EDGE = 12.0
# A smaller range than this, relative to the figures, is rounding.
LEAST_SPAN = 1e-6

Points = Mapping[int, RuleFigure]  # by the position of the version, 1 is the oldest


def figure_chart(
    name: str, points: Points, titles: Sequence[str], *, production: int | None = None
) -> Markup:
    """Draw value and interval of a rule for each version, the limits, and a line at the version in production.

    titles: of all versions, oldest first; positions in `points` count from 1.
    """
    measured = {at: point for at, point in points.items() if point.value is not None}
    known = [
        figure
        for point in points.values()
        for figure in (point.value, point.low, point.high, *point.allowed)
        if figure is not None
    ]
    ticks = _ticks(known)
    ends = (1.0, float(len(titles))) if len(titles) > 1 else (0.0, 2.0)  # a single version is in the middle
    across = scale(*ends, LEFT + INSET, WIDTH - RIGHT - EDGE)
    upward = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_axes(ticks, upward, across, len(titles)), *_limits(points, across, upward)]
    if production is not None:
        x = across(production)
        parts.append(line_part("mark", x, TOP, x, HEIGHT - BOTTOM))
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(
            text_part("chosen-value", x + (-5 if anchor == "end" else 5), TOP - 4, anchor, "production")
        )
    parts += _figures(measured, titles, across, upward)
    return svg_of("chart", WIDTH, HEIGHT, f"{name} of {len(measured)} versions, oldest first", parts)


def shown_figure(figure: float) -> str:
    """Return a figure in four digits, with a real minus sign."""
    return f"{figure:.4g}".replace("-", MINUS)


def _ticks(known: Sequence[float]) -> list[float]:
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= LEAST_SPAN * max(abs(low), abs(high), LEAST_SPAN):
        high = low
    return nice_ticks(low, high)


def _axes(ticks: Sequence[float], upward: Scale, across: Scale, count: int) -> list[Part]:
    parts = []
    for tick in ticks:
        parts.append(line_part("rule", LEFT, upward(tick), WIDTH - RIGHT, upward(tick)))
        parts.append(text_part("tick", LEFT - 6, upward(tick) + 3.5, "end", shown_figure(tick)))
    base = HEIGHT - BOTTOM
    parts.append(line_part("axis", LEFT, base, WIDTH - RIGHT, base))
    shown = {1, count} | {int(tick) for tick in nice_ticks(1, count, 4) if 1 < tick < count - count // 8}
    parts += [text_part("tick", across(at), base + 14, "middle", str(at)) for at in sorted(shown)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, text_part("label", middle, HEIGHT - 6, "middle", "version, oldest first")]


def _limits(points: Points, across: Scale, upward: Scale) -> list[Part]:
    """Draw each limit as a line of steps: it may differ from version to version."""
    half = (across(2) - across(1)) / 2
    lines: list[list[tuple[float, float]]] = [[], []]
    for at, point in sorted(points.items()):
        for line, figure in zip(lines, point.allowed, strict=False):
            line += [
                (max(LEFT, across(at) - half), upward(figure)),
                (min(WIDTH - RIGHT, across(at) + half), upward(figure)),
            ]
    return [Part("polyline", "limit", points=line) for line in lines if line]


def _figures(measured: Points, titles: Sequence[str], across: Scale, upward: Scale) -> list[Part]:
    """Draw the values as a line; for few versions also each interval and a dot, for many a line along the ends."""
    parts = []
    places = {
        at: (across(at), upward(point.value))
        for at, point in sorted(measured.items())
        if point.value is not None
    }
    if len(places) > INTERVALS_UP_TO:
        for end in ("low", "high"):
            ends = [
                (across(at), upward(figure))
                for at, point in sorted(measured.items())
                if (figure := getattr(point, end)) is not None
            ]
            parts += [Part("polyline", "end", points=ends)] if ends else []
        parts.append(Part("polyline", "line line-0 dense", points=list(places.values())))
        return parts + [
            Part(
                "circle",
                "value bad",
                {"cx": x, "cy": y, "r": 2.6},
                title=_title(titles[at - 1], measured[at]),
            )
            for at, (x, y) in places.items()
            if measured[at].state == "bad"
        ]
    if len(places) > 1:
        parts.append(Part("polyline", "line line-0 faint", points=list(places.values())))
    for at, (x, y) in places.items():
        point = measured[at]
        if point.low is not None and point.high is not None:
            parts.append(line_part(f"interval {point.state}", x, upward(point.low), x, upward(point.high)))
        title = _title(titles[at - 1], point)
        parts.append(Part("circle", f"value {point.state}", {"cx": x, "cy": y, "r": 3.4}, title=title))
    return parts


def _title(version: str, point: RuleFigure) -> str:
    interval = f" ({plain(point.low)} … {plain(point.high)})" if point.low is not None else ""
    return f"{version}: {plain(point.value)}{interval}"
