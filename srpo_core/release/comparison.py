"""Describe a candidate beside the release in production, as Markdown: what a person decides by."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from srpo_core.release.layout import GRID
from srpo_core.release.links import release_links
from srpo_core.release.manifest_rows import release_row
from srpo_core.release.store_page import with_image
from srpo_core.report.store_chart import shown_figure
from srpo_core.report.store_rows import ReleaseRow, RuleFigure
from srpo_core.report.text import markdown_text
from srpo_core.runtime.costs import cost_text, recorded_cost
from srpo_core.runtime.notifications import located
from srpo_core.storage import Store

_STATES = {"bad": "refuses", "warn": "warns", "good": "holds"}
NOTHING = "–"


def compare_with_champion(store: Store, version: str, champion: str | None, *, until: datetime) -> str:
    """Return what a candidate is and would replace: verdict, images, the gate's rules for both, cost, and the report.

    champion: the version in production, which the store may have lost, or None. until: when the time to decide ends.

    Raises:
        StoreError: there is no such version, or the store cannot be read.
    """
    manifest = store.manifest(version)
    other = store.manifest(champion) if champion and store.has(champion) else None
    row = with_image(store, release_row(version, manifest, ()), manifest["files"].get(GRID))
    known = None if champion is None or other is None else release_row(champion, other, ())
    replaced = champion or "nothing: no release is in production"
    image = (
        f"![before (above) and after (below)]({row.image})" if row.image else f"No images: {row.image_fault}"
    )
    report = release_links(store, version).get("report")
    lines = [
        f"## {version} would replace {replaced}",
        "",
        f"- decide until {until:%Y-%m-%d %H:%M} UTC; after that {version} stays the candidate, and production as it is",
        f"- report: {_link(report) if report else NOTHING}",
        f"- cost: {_cost(manifest)}" + (f"; of {champion}: {_cost(other)}" if other else ""),
        f"- published: {_when(row)}" + (f"; {champion}: {_when(known)}" if known else ""),
        *([f"- the store has lost {champion}: it cannot be compared"] if champion and other is None else []),
        "",
        f"**passed**: {markdown_text(row.reason)}",
        "",
        image if row.image or row.image_fault else "",
        "",
        *_rule_table(row, known),
    ]
    return "\n".join(lines)


def _rule_table(row: ReleaseRow, champion: ReleaseRow | None) -> Iterator[str]:
    """Yield the gate's rules as a table, with the figures that the champion had at its own gate.

    It is narrow, because the form is. Rules that refuse or warn are first, and those that compare with the champion before
    those that do not.
    """
    applied = [item for item in row.rules.items() if item[1].state]
    if not applied:
        return
    yield f"| rule | candidate | allowed |{' production |' if champion else ''}"
    yield f"|---|---:|---:|{'---:|' if champion else ''}"
    order = tuple(_STATES)
    for name, rule in sorted(
        applied, key=lambda item: (order.index(item[1].state), "champion" not in item[1].label)
    ):
        end = f" {_figure(champion.rules.get(name))} |" if champion else ""
        yield f"| {markdown_text(name)} {_STATES[rule.state]} | {_figure(rule)} | {rule.limit} |{end}"
    yield ""
    if left_out := [name for name, rule in row.rules.items() if not rule.state]:
        yield f"Rules that do not apply: {markdown_text(', '.join(left_out))}."
    if champion:
        yield f"production: {champion.version}, at its own gate."


def _figure(rule: RuleFigure | None) -> str:
    return NOTHING if rule is None or rule.value is None else shown_figure(rule.value)


def _when(row: ReleaseRow | None) -> str:
    return markdown_text(row.created_at[:10]) if row and row.created_at else NOTHING


def _cost(manifest: Mapping[str, Any] | None) -> str:
    cost = recorded_cost(manifest) if manifest is not None else None
    return "not recorded" if cost is None else markdown_text(cost_text(cost))


def _link(place: str) -> str:
    """Return an address as a link, and a path with the name of this machine."""
    if place.startswith(("http://", "https://")):
        return f"[{place.rpartition('/')[2]}]({place})"
    return markdown_text(located(place))
