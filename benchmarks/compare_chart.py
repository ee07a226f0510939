"""Draw what methods gain over CPU seconds, and what it costs them, as an SVG without a library."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from compare import METRICS

from srpo_core.report.charts import nice_ticks, scale

if TYPE_CHECKING:
    from compare_curves import Curve

SIDE, LEFT, TOP, BOTTOM = 360, 50, 30, 44
COLOURS: Final = (
    *("#1b6ca8", "#7fb3d5", "#c0392b", "#27ae60", "#8e44ad", "#b4652a"),
    *("#444444", "#c2407f", "#008080", "#8a6100", "#999999", "#00a000"),
)
# (title of the panel, metric across or None for CPU seconds, metric upward, whether it is a share of the base's)
PANELS: Final = (
    ("style gained over CPU seconds", None, "judge_wanted", False),
    ("diversity, share of the base's, against style gained", "judge_wanted", "diversity", True),
    ("subject, top-1, against style gained", "judge_wanted", "judge_top1", False),
)


def draw_curves(curves: Sequence["Curve"], title: str) -> str:
    """Return the SVG: a panel for each of `PANELS`, a line for each method, from the base to its last step."""
    height = SIDE + 20 * -(-len(curves) // 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE * len(PANELS)} {height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#ffffff"/>'
    ]
    for number, (words, across, upward, share) in enumerate(PANELS):
        lines = [(_across(one, across), _points(one, upward, share=share)) for one in curves]
        parts.append(f'<g transform="translate({SIDE * number},0)">')
        parts += _panel(f"{title.replace('_', ' ')}: {words}", lines)
        parts.append("</g>")
    for number, one in enumerate(curves):
        x, y = LEFT + 280 * (number % 3), SIDE + 14 + 20 * (number // 3)
        parts.append(
            f'<path d="M{x} {y - 4}h18" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{x + 24}" y="{y}">{escape(one.method)}</text>')
    return "".join([*parts, "</svg>\n"])


def _across(curve: "Curve", metric: str | None) -> list[float]:
    if metric:
        return _points(curve, metric, share=False)
    return [0.0, *curve.cpu.tolist()]


def _points(curve: "Curve", metric: str, *, share: bool) -> list[float]:
    """Return a figure of the base and of each measured step, over seeds and prompts, as a change or share."""
    number = METRICS.index(metric)
    base = float(curve.base[..., number].mean())
    values = [base, *curve.figures[..., number].mean((0, 2)).tolist()]
    return [value / base if share else value - base for value in values]


def _panel(title: str, lines: Sequence[tuple[list[float], list[float]]]) -> list[str]:
    across_ticks = _ticks([x for xs, _ in lines for x in xs])
    upward_ticks = _ticks([y for _, ys in lines for y in ys])
    across = scale(across_ticks[0], across_ticks[-1], LEFT, SIDE - 14)
    upward = scale(upward_ticks[0], upward_ticks[-1], SIDE - BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="16">{escape(title)}</text>']
    for tick in upward_ticks:
        y = upward(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{SIDE - 14}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text x="{across(tick):.1f}" y="{SIDE - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in across_ticks
    ]
    for number, (xs, ys) in enumerate(lines):
        places = [(round(across(x), 1), round(upward(y), 1)) for x, y in zip(xs, ys, strict=True)]
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.2" fill="{colour}"/>' for x, y in places]
    return parts


def _ticks(values: Sequence[float]) -> list[float]:
    return nice_ticks(min(values), max(values))
