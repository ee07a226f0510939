"""What a data version contains, and what changed between two, as tables of a terminal and of Markdown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from srpo_core.data.annotators import Share
from srpo_core.data.changes import Changes
from srpo_core.report.data_figures import Figure
from srpo_core.report.numbers import MISSING, percent
from srpo_core.report.text import markdown_text, visible

if TYPE_CHECKING:
    from rich.table import Table

KINDS = ("added", "removed", "changed", "unchanged")
Moves = Sequence[tuple[Figure | None, Figure | None]]


def figure_table(figures: Sequence[Figure]) -> "Table":
    """Return the figures as a table for a terminal."""
    return _table(
        ["", ""], ["figure"], [[visible(one.group), visible(one.name), one.text] for one in figures]
    )


def change_table(changes: Mapping[str, Changes]) -> "Table":
    """Return how many records were added, removed and changed, by split."""
    rows = [[split, *(f"{getattr(one, kind):,}" for kind in KINDS)] for split, one in changes.items()]
    return _table(["records"], KINDS, rows)


def move_table(moves: Moves) -> "Table":
    """Return the figures that moved, before and after."""
    return _table(
        ["figure", ""], ["before", "after"], [[visible(cell) for cell in row] for row in _moved(moves)]
    )


def agreement_table(rows: Sequence[tuple[str, str, Share]]) -> "Table":
    """Return how often each reward agrees with people, by style: rows (reward, style, share)."""
    numbers = [
        [
            visible(reward),
            visible(style),
            percent(one.share, 1),
            f"{percent(one.low, 1)} … {percent(one.high, 1)}",
            f"{one.count:,}",
        ]
        for reward, style, one in rows
    ]
    return _table(["reward", "style"], ["agrees", "95 % interval", "pairs"], numbers)


def markdown_table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table of Markdown."""
    rows = [f"| {markdown_text(one.group)} | {markdown_text(one.name)} | {one.text} |" for one in figures]
    return "\n".join(["| | | figure |", "|---|---|---:|", *rows])


def example_lines(changes: Mapping[str, Changes]) -> list[str]:
    """List examples of what changed: split, kind and prompt."""
    return [
        f"{split} {kind}: {visible(prompt)}"
        for split, one in changes.items()
        for kind in KINDS
        for prompt in one.examples.get(kind, ())
    ]


def _moved(moves: Moves) -> list[list[str]]:
    rows = []
    for before, after in moves:
        one = before or after
        assert one is not None, "a figure of neither version"
        rows.append(
            [one.group, one.name, before.text if before else MISSING, after.text if after else MISSING]
        )
    return rows


def _table(names: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for title in names:
        table.add_column(title)
    for title in numbers:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
