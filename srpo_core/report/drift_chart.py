"""The chart of a comparison of two data sets: shares of the styles, and agreement of the reward with people."""

from collections.abc import Mapping, Sequence
from typing import Final

from srpo_core.report.chart_image import image_url
from srpo_core.report.charts import Part, line_part, svg_of, text_part
from srpo_core.report.numbers import percent

WIDTH: Final = 340.0
MOST_STYLES: Final = 12
_LEFT, _RIGHT, _ROW, _BAR, _TOP = 96.0, 44.0, 30.0, 9.0, 26.0
_LETTERS: Final = 16
_REST: Final = "all others"

Share = tuple[float, float, float]  # with the bounds of its interval


def drift_image(
    before: Mapping[str, int], after: Mapping[str, int], agreement: tuple[Share, Share] | None
) -> str:
    """Draw a row with two bars for each style, and one for the agreement, as the URL of an image.

    before, after: prompts by style, or empty. agreement: the shares before and after with their intervals, or None.
    """
    rows: list[tuple[str, Share, Share]] = [
        (name, (old, old, old), (new, new, new)) for name, old, new in style_shares(before, after)
    ]
    if agreement is not None:
        rows.append(("reward agrees", *agreement))
    height = _TOP + _ROW * len(rows)
    parts = [
        *_legend(),
        *(part for place, row in enumerate(rows) for part in _row(_TOP + _ROW * place, *row)),
    ]
    return image_url(
        str(svg_of("chart", WIDTH, height, "styles and agreement before and after", parts)), WIDTH, height
    )


def style_shares(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, float, float]]:
    """Return (style, share before, share after), the styles that moved most first; the last ones as one row."""
    if not before or not after:
        return []
    totals = sum(before.values()), sum(after.values())
    rows = [
        (style, before.get(style, 0) / totals[0], after.get(style, 0) / totals[1])
        for style in sorted(before.keys() | after.keys())
    ]
    rows.sort(key=lambda row: -abs(row[2] - row[1]))
    if len(rows) <= MOST_STYLES:
        return rows
    shown, rest = rows[: MOST_STYLES - 1], rows[MOST_STYLES - 1 :]
    return [*shown, (_REST, sum(row[1] for row in rest), sum(row[2] for row in rest))]


def _legend() -> Sequence[Part]:
    return [
        _bar("before", _LEFT, 6.0, 12.0),
        text_part("label", _LEFT + 16, 14, "start", "production"),
        _bar("after", _LEFT + 90, 6.0, 12.0),
        text_part("label", _LEFT + 106, 14, "start", "new"),
    ]


def _row(top: float, name: str, before: Share, after: Share) -> Sequence[Part]:
    label = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    parts = [text_part("label", _LEFT - 6, top + _BAR + 4, "end", label)]
    room = WIDTH - _LEFT - _RIGHT
    for kind, y, (share, low, high) in (("before", top, before), ("after", top + _BAR + 2, after)):
        end = _LEFT + room * share
        parts.append(_bar(kind, _LEFT, y, room * share))
        if low < high:
            parts.append(
                line_part("interval", _LEFT + room * low, y + _BAR / 2, _LEFT + room * high, y + _BAR / 2)
            )
            end = _LEFT + room * high
        parts.append(text_part("label", end + 4, y + _BAR - 1, "start", percent(share)))
    return parts


def _bar(kind: str, x: float, y: float, width: float) -> Part:
    return Part("rect", kind, {"x": x, "y": y, "width": width, "height": _BAR})
