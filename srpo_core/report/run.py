"""What a run was: the data it saw, how its settings differ from a preset, and the table of its cost."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core import config
from srpo_core.artifacts import PAIRS, PROMPTS, require, sha256

DIGITS: Final = 12
COST_MARK: Final = "<!-- cost -->"


@dataclass(frozen=True)
class Difference:
    """One setting that is not the preset's."""

    key: str
    preset: str
    here: str


def data_version() -> dict[str, str]:
    """What the data were, by the tables of stage ingest: name of the table to the start of its SHA-256."""
    return {path.name: sha256(require(path))[:DIGITS] for path in (PROMPTS, PAIRS)}


def nearest_preset(values: Mapping[str, Any], root: Path = Path()) -> tuple[str, list[Difference]]:
    """The preset in profiles/ with the fewest settings that differ, and those settings. No preset: an empty name.

    The champion is none of them, as the flow fills it in, nor are worker counts.
    """
    found = [
        (name, list(_differences(config.read_values(config.profile_path(name, root)), values)))
        for name in config.profile_names(root)
    ]
    return min(found, key=lambda one: len(one[1]), default=("", []))


def with_costs(page: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """The page with a table of costs in the place that it keeps for one."""
    from markupsafe import Markup

    cells = Markup(
        '<tr><td class="name">{stage}</td><td class="number" data-label="Wall hours">{wall_hours:.4f}</td>'
        '<td class="number" data-label="Device hours">{device_hours:.4f}</td>'
        '<td class="number" data-label="Devices">{devices} {kind}</td></tr>'
    )
    entries = list(rows)
    if not entries:
        return page
    total = {
        "stage": "all",
        "wall_hours": sum(row["wall_hours"] for row in entries),
        "device_hours": sum(row["device_hours"] for row in entries),
        "devices": "",
        "kind": "",
    }
    body = Markup("").join(cells.format(**row) for row in [*entries, total])
    head = Markup(
        '<table><thead><tr><th>Stage</th><th class="number">Wall hours</th><th class="number">Device hours</th>'
        '<th class="number">Devices</th></tr></thead><tbody>'
    )
    return page.replace(COST_MARK, head + body + Markup("</tbody></table>"), 1)


def _differences(preset: Mapping[str, Any], values: Mapping[str, Any], at: str = "") -> Iterator[Difference]:
    for key in sorted({*preset, *values}):
        path = f"{at}.{key}".lstrip(".")
        if path in {"champion", "resources"}:
            continue
        one, other = preset.get(key), values.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, path)
        elif one != other:
            yield Difference(path, _plain(one), _plain(other))


def _plain(value: Any) -> str:
    return (
        "none"
        if value is None
        else json.dumps(value, ensure_ascii=False)
        if isinstance(value, list | dict)
        else str(value)
    )
