"""The table of costs in the report."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from srpo_core.report.templates import render

COST_MARK: Final = "<!-- cost -->"


def with_costs(page: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Insert the table of costs into the page at its mark; without rows the page stays unchanged."""
    entries = list(rows)
    return page.replace(COST_MARK, render("costs.html.j2", rows=entries), 1) if entries else page
