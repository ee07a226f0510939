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
LAST_PART: Final = "Of a stage that was killed and went on, only the last part is counted; of one that ran again, the last time."


@dataclass(frozen=True)
class Difference:
    """One setting that is not the preset's."""

    key: str
    preset: str
    here: str


def data_version() -> dict[str, str]:
    """What the data were, by the tables of stage ingest: name of the table to the start of its SHA-256."""
    return {path.name: sha256(require(path))[:DIGITS] for path in (PROMPTS, PAIRS)}


def nearest_preset(parts: Mapping[str, Any], root: Path = Path()) -> tuple[str, list[Difference]]:
    """The preset in profiles/ with the fewest settings that differ, and those settings. No preset: an empty name.

    parts: the parts of the settings that are compared, by name. Those that change no result are not given: the
    champion, which the flow fills in, worker counts, and the release's name.

    Raises:
        ConfigError: a preset cannot be used.
    """
    here = _values(parts)
    found = []
    for name in config.profile_names(root):
        preset = config.load_settings(config.profile_path(name, root))
        found.append((name, list(_differences(_values({key: getattr(preset, key) for key in parts}), here))))
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
    note = Markup('<p class="note">{}</p>').format(LAST_PART)
    return page.replace(COST_MARK, head + body + Markup("</tbody></table>") + note, 1)


def _differences(preset: Mapping[str, Any], values: Mapping[str, Any], at: str = "") -> Iterator[Difference]:
    for key in sorted({*preset, *values}):
        path = f"{at}.{key}".lstrip(".")
        one, other = preset.get(key), values.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, path)
        elif one != other:
            yield Difference(path, _plain(one), _plain(other))


def _values(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the settings as plain values, as a file has them."""
    return {
        name: part.model_dump(mode="json") if isinstance(part, config.Part) else part
        for name, part in parts.items()
    }


def _plain(value: Any) -> str:
    return (
        "none"
        if value is None
        else json.dumps(value, ensure_ascii=False)
        if isinstance(value, list | dict)
        else str(value)
    )
