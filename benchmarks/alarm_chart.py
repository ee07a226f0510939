"""Draw the operating characteristics that benchmarks/alarm.py has found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

WIDTH, HEIGHT, LEFT, TOP, BASE = 420, 250, 44, 30, 20
SHARES: Final = (0, 0.5, 0.8, 0.95, 1)
COLOURS: Final = (
    *("#1b7f9c", "#b4652a", "#23744a", "#a8321f", "#6b4fa0"),
    *("#8a6100", "#444444", "#c2407f", "#999999", "#00a000"),
)
RULES: Final = (("alarm", ""), ("old", ' stroke-dasharray="3 3" opacity="0.6"'))


def draw_chart(lines: Sequence[Mapping[str, Any]], path: Path, *, begins: int) -> None:
    """Draw the share of runs that are stopped by each evaluation, one panel for each number of prompts.

    lines: see `summary` in alarm.py; begins: the first evaluation with a fault.
    """
    sizes = sorted({line["prompts"] for line in lines})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(sizes)} {HEIGHT + 120}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for panel, size in enumerate(sizes):
        parts += _panel(panel * WIDTH + LEFT, size, [line for line in lines if line["prompts"] == size])
    parts += _legend([line["kind"] for line in lines if line["prompts"] == sizes[0]])
    words = f"solid: the alarm; dashed: the former margin and patience. Faults begin at evaluation {begins}."
    parts.append(f'<text x="{LEFT}" y="{HEIGHT + 104}">{words}</text></svg>\n')
    path.write_text("".join(parts), encoding="utf-8")


def _panel(left: int, size: int, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    width, count = WIDTH - 70, len(lines[0]["alarm_by_evaluation"])

    def across(index: int) -> float:
        return left + index * width / (count - 1)

    def upward(share: float) -> float:
        return HEIGHT - BASE - share * (HEIGHT - BASE - TOP)

    parts = [f'<text x="{left}" y="16">{size} prompts: share of runs stopped by evaluation</text>']
    for share in SHARES:
        y = upward(share)
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 30}" y="{y + 4:.1f}">{share:g}</text>')
    parts += [
        f'<text x="{across(index):.1f}" y="{HEIGHT}" text-anchor="middle">{index + 1}</text>'
        for index in range(count)
    ]
    for line, colour in zip(lines, COLOURS, strict=True):
        for name, style in RULES:
            shares = line[f"{name}_by_evaluation"]
            points = " ".join(f"{across(i):.1f},{upward(share):.1f}" for i, share in enumerate(shares))
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{style}/>'
            )
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for place, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        x, y = LEFT + 260 * (place % 3), HEIGHT + 24 + 18 * (place // 3)
        parts.append(f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 24}" y="{y}">{name}</text>')
    return parts
