"""What a run used: its data, and how its settings differ from a preset."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core import config
from srpo_core.artifacts import PAIRS, PROMPTS, require, sha256

DIGITS: Final = 12


@dataclass(frozen=True)
class Difference:
    """One setting that differs from the preset."""

    key: str
    preset: str
    here: str


def data_version() -> dict[str, str]:
    """Identify the data by the tables of stage ingest: from a table's name to the start of its SHA-256."""
    return {path.name: sha256(require(path))[:DIGITS] for path in (PROMPTS, PAIRS)}


def nearest_preset(parts: Mapping[str, Any], root: Path = Path()) -> tuple[str, list[Difference]]:
    """Find the preset in profiles/ with the fewest different settings, and list these. The name is empty without presets.

    parts: the parts of the settings to compare, by name. Parts that change no result are left out: the champion, which
    the flow fills in, the worker counts and the release's name.

    Raises:
        ConfigError: a preset cannot be used.
    """
    here = _values(parts)
    found = []
    for name in config.profile_names(root):
        preset = config.load_settings(config.profile_path(name, root))
        found.append((name, list(_differences(_values({key: getattr(preset, key) for key in parts}), here))))
    return min(found, key=lambda one: len(one[1]), default=("", []))


def _differences(preset: Mapping[str, Any], values: Mapping[str, Any], at: str = "") -> Iterator[Difference]:
    for key in sorted({*preset, *values}):
        path = f"{at}.{key}".lstrip(".")
        one, other = preset.get(key), values.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, path)
        elif one != other:
            yield Difference(path, _plain(one), _plain(other))


def _values(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parts of the settings to plain values, as in a file."""
    return {name: _value(part) for name, part in parts.items()}


def _value(part: Any) -> Any:
    if isinstance(part, list):
        return [_value(one) for one in part]
    return part.model_dump(mode="json") if isinstance(part, config.Part) else part


def _plain(value: Any) -> str:
    return (
        "none"
        if value is None
        else json.dumps(value, ensure_ascii=False)
        if isinstance(value, list | dict)
        else str(value)
    )
