"""The diagram of where releases come from, as inline SVG: one for wide and one for narrow windows."""

from collections.abc import Sequence

from markupsafe import Markup

from srpo_core.report.charts import Part, line_part, svg_of, text_part
from srpo_core.report.store_rows import ReleaseRow

WIDE, NARROW = 1124.0, 360.0
DOT, RADIUS = 40.0, 5.5
LANES = 4  # side by side, of lines from releases to the champions that they were compared with
NAME, COLUMN, BOX, GAP = 58.0, 262.0, 162.0, 10.0
HEAD, ROW, PAD = 26.0, 52.0, 7.0
LINE, NARROW_ROW, KEY, VALUE = 17.0, 142.0, 58.0, 118.0
LETTERS_OF_NAME, LETTERS_BEFORE_TAG, LETTERS_OF_VALUE, LETTERS_OF_NARROW = 24, 18, 21, 32


def wide_diagram(rows: Sequence[ReleaseRow], production: str | None) -> Markup:
    """Draw releases below each other, newest first, and what each was made from; equal values share a box."""
    middles = [HEAD + ROW * (number + 0.5) for number in range(len(rows))]
    names = [name for name, _ in rows[0].lineage.parts()]
    starts = [COLUMN + (BOX + GAP) * column for column in range(len(names))]
    parts = [
        text_part("head", x + PAD, HEAD - 10, "start", name) for x, name in zip(starts, names, strict=True)
    ]
    parts += [line_part("link", DOT, y, starts[-1] + BOX, y) for y in middles]
    for column, x in enumerate(starts):
        values = [row.lineage.parts()[column][1] for row in rows]
        parts += _boxes(values, x)
    height = HEAD + ROW * len(rows) + PAD
    parts += _champions(rows, middles, height)
    for row, y in zip(rows, middles, strict=True):
        parts += _release(row, y, row.version == production, COLUMN - 8)
        parts.append(text_part("note", NAME, y + 15, "start", _second_line(row)))
    return svg_of("lineage wide-only", WIDE, height, "where each release comes from", parts)


def narrow_diagram(rows: Sequence[ReleaseRow], production: str | None) -> Markup:
    """Draw the same with the values of a release below its name; a value that the release before had is faint."""
    tops = [16.0 + NARROW_ROW * number for number in range(len(rows))]
    height = NARROW_ROW * len(rows)
    parts = _champions(rows, tops, height)
    for number, (row, top) in enumerate(zip(rows, tops, strict=True)):
        parts += _release(row, top, row.version == production, NARROW - 4)
        parts.append(text_part("note", NAME, top + LINE, "start", _second_line(row)))
        older = rows[number + 1].lineage.parts() if number + 1 < len(rows) else ()
        for place, part in enumerate(row.lineage.parts()):
            y = top + LINE * (place + 2)
            parts.append(text_part("note", KEY, y, "start", part[0]))
            same = "note" if part in older else "item"
            shown = text_part(same, VALUE, y, "start", shortened(part[1], LETTERS_OF_NARROW))
            parts.append(shown)
    return svg_of("lineage narrow-only", NARROW, height, "where each release comes from", parts)


def shortened(text: str, letters: int) -> str:
    """Return a text of at most so many letters: its end counts more, because paths and digests differ there."""
    return text if len(text) <= letters else f"{text[: letters // 3]}…{text[-(letters - letters // 3 - 1) :]}"


def _second_line(row: ReleaseRow) -> str:
    if row.lineage.champion is None:
        return "no champion to beat"
    did = "beat" if row.passed else "lost to"
    return f"{did} {shortened(row.lineage.champion, LETTERS_OF_NAME)}"


def _release(row: ReleaseRow, y: float, in_production: bool, tag_end: float) -> list[Part]:
    state = ("good" if row.passed else "bad") + (" chosen" if in_production else "")
    name = shortened(row.version, LETTERS_BEFORE_TAG if in_production else LETTERS_OF_NAME)
    return [
        Part("circle", f"node {state}", {"cx": DOT, "cy": y, "r": RADIUS}, title=row.version),
        Part(
            "text",
            "name",
            {"x": NAME, "y": y - 1},
            words=name,
            anchor="start",
            title=row.version,
            href=f"#{row.version}",
        ),
        *([text_part("tagged", tag_end, y - 1, "end", "production")] if in_production else []),
    ]


def _boxes(values: Sequence[str], x: float) -> list[Part]:
    """Draw a box for each run of equal values."""
    parts: list[Part] = []
    start = 0
    for number, value in enumerate(values):
        if number + 1 < len(values) and values[number + 1] == value:
            continue
        top, height = HEAD + ROW * start + PAD, ROW * (number + 1 - start) - 2 * PAD
        parts.append(Part("rect", "box", {"x": x, "y": top, "width": BOX, "height": height, "rx": 6.0}))
        words = shortened(value, LETTERS_OF_VALUE)
        middle = top + height / 2 + 4
        parts.append(
            Part("text", "item", {"x": x + PAD + 2, "y": middle}, words=words, anchor="start", title=value)
        )
        start = number + 1
    return parts


def _champions(rows: Sequence[ReleaseRow], places: Sequence[float], height: float) -> list[Part]:
    """Draw a line from each release to its champion, or to the lower edge if that is not shown."""
    at = {row.version: place for row, place in zip(rows, places, strict=True)}
    parts = []
    for number, row in enumerate(rows):
        champion = row.lineage.champion
        if champion is None or champion == row.version:
            continue
        x = DOT - 8 - 7 * (number % LANES + 1)
        end = at.get(champion)
        down = [(x, height)] if end is None else [(x, end), (DOT - RADIUS, end)]
        words = f"{row.version} was compared with {champion}"
        points = [(DOT - RADIUS, places[number]), (x, places[number]), *down]
        parts.append(Part("polyline", "beat", points=points, title=words))
    return parts
