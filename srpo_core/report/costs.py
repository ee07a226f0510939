"""The table of costs in the report."""

from typing import Final

from srpo_core.report.templates import render
from srpo_core.runtime.costs import RunCost, money_text

COST_MARK: Final = "<!-- cost -->"


def with_costs(page: str, cost: RunCost | None) -> str:
    """Insert the table of costs into the page at its mark; without costs the page stays unchanged."""
    if cost is None:
        return page
    return page.replace(COST_MARK, render("costs.html.j2", cost=cost, money=money_text), 1)
