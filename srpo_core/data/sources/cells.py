"""What a cell of a table says: a text, a style, a number."""

import math
from typing import Any

from srpo_core.data.records import Record, brief


def style(row: Record, cell: Any, column: str) -> str:
    """Return the style of a record, empty if it has none."""
    text = as_text(cell)
    if text is None and not _is_empty(cell):
        row.refuse("broken_record", f"{column}: must be a text, not {type(cell).__name__}")
    return row.check_text(text, column) if text else ""


def as_text(cell: Any) -> str | None:
    """Return a text or number as a text without blanks around it; None if it is empty or something else."""
    if isinstance(cell, bool) or _is_empty(cell) or not isinstance(cell, str | int | float):
        return None
    return str(cell).strip()


def _is_empty(cell: Any) -> bool:
    """Whether a cell has no value, as a null of parquet has none: NaN is what pandas makes of it."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())  # noqa: PLR0124


def number(row: Record, value: Any, column: str) -> float:
    """Return a finite number of at most 2^53, which may be written as a text."""
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, bool) or not isinstance(found, int | float):
        row.refuse("broken_record", f"{column}: must be a finite number, found {brief(value)}")
    if not abs(found) < math.inf:
        row.refuse("bad_number", f"{column}: must be a finite number, found {brief(value)}")
    return row.check_number(found, column)
