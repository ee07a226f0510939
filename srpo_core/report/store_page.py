"""The page of a store, `index.html`: releases, production, figures over versions, origins. It is self-contained."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from markupsafe import Markup

from srpo_core.report.store_chart import figure_chart
from srpo_core.report.store_lineage import narrow_diagram, wide_diagram
from srpo_core.report.store_rows import ModelPart, ReleaseRow
from srpo_core.report.templates import render

# Of each model: versions with images and origins, versions in the charts, rows of the table of versions, moves of
# production, charts. Others are counted. OPEN: rows and charts that are not folded.
DETAILED: Final = 12
CHARTED: Final = 200
OPEN_ROWS: Final = 6
OPEN_PANELS: Final = 6
LISTED: Final = 1000
MOVES: Final = 100
PANELS: Final = 40


@dataclass(frozen=True)
class StorePage:
    """What the page shows; store: its name; written_at: when it was read; oddities: entries that are no releases."""

    store: str
    written_at: str
    models: Sequence[ModelPart]
    oddities: Sequence[str] = ()


def render_store_page(page: StorePage) -> Markup:
    """Render the page; texts of manifests and aliases are escaped."""
    return render(
        "store_page.html.j2",
        seeds=(),
        page=page,
        num_versions=sum(len(model.rows) for model in page.models),
        num_damaged=sum(bool(row.fault) for model in page.models for row in model.rows),
        models=[_model(model) for model in page.models],
        detailed=DETAILED,
    )


def detailed_rows(rows: Sequence[ReleaseRow], production: str | None) -> list[ReleaseRow]:
    """Return the rows with images and origins: the newest readable ones, and the one in production."""
    readable = [row for row in rows if not row.fault]
    newest = readable[:DETAILED]
    return newest + [row for row in readable[DETAILED:] if row.version == production]


def _model(model: ModelPart) -> dict[str, Any]:
    detailed = detailed_rows(model.rows, model.production)
    known = {row.version for row in model.rows}
    readable = [row for row in model.rows if not row.fault]
    panels = _panels(model)
    return {
        "name": model.name,
        "production": next((row for row in model.rows if row.version == model.production), None),
        "production_name": model.production,
        "faults": model.faults,
        "since": model.moves[0].when if model.moves and model.moves[0].after == model.production else "",
        "moves": model.moves[:OPEN_ROWS],
        "older_moves": model.moves[OPEN_ROWS:MOVES],
        "num_unlisted_moves": max(0, len(model.moves) - MOVES),
        "rejections": model.rejections[:MOVES],
        "num_versions": len(model.rows),
        "panels": panels[:OPEN_PANELS],
        "more_panels": panels[OPEN_PANELS:],
        "num_charted": min(CHARTED, len(readable)),
        "diagrams": (wide_diagram(detailed, model.production), narrow_diagram(detailed, model.production))
        if detailed
        else (),
        "detailed": detailed,
        "damaged": [row for row in model.rows if row.fault][:LISTED],
        "open": readable[:OPEN_ROWS],
        "folded": readable[OPEN_ROWS:LISTED],
        "num_unlisted": max(0, len(readable) - LISTED),
        "known": known,
    }


def _panels(model: ModelPart) -> list[dict[str, Any]]:
    """Draw one chart for each rule that one of the charted versions has, in the order of the newest that has it."""
    charted = [row for row in model.rows if not row.fault][:CHARTED][::-1]
    names = dict.fromkeys(name for row in reversed(charted) for name in row.rules)
    titles = [row.version for row in charted]
    production = titles.index(model.production) + 1 if model.production in titles else None
    panels = []
    for name in islice(names, PANELS):
        points = {at: row.rules[name] for at, row in enumerate(charted, 1) if name in row.rules}
        newest = points[max(points)]
        panels.append(
            {
                "name": name,
                "newest": newest,
                "svg": figure_chart(name, points, titles, production=production),
            }
        )
    return panels
