"""Draw chances of refusal as curves, as an SVG without a library: the same points give the same bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 400, 60, 50, 20
RIGHT: Final = 250  # the legend
COLOURS: Final = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c")
TICKS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


def drawn(lines: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> str:
    """Return an SVG of curves: chance of refusal against the true share of the defect, on a square-root axis.

    lines: each with its name `curve` and its `points` (share, chance); shares: where the axis has a mark.
    """

    def x(share: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share**0.5, 1)

    def y(chance: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - chance), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for share in shares:
        parts.append(f'<path d="M{x(share)} {y(0)}V{y(1)}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{x(share)}" y="{y(0) + 16}" text-anchor="middle">{100 * share:g}</text>')
    for chance in TICKS:
        parts.append(f'<path d="M{x(0)} {y(chance)}H{x(1)}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(chance) + 4}" text-anchor="end">{100 * chance:g} %</text>')
    middle = (x(0) + x(1)) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">true share in % (square-root axis)</text>'
    )
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(share)},{y(chance)}" for share, chance in line["points"])
        at = TOP + 14 + 22 * number
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<path d="M{x(1) + 14} {at - 4}h20" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{x(1) + 40}" y="{at}">{line["curve"]}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
