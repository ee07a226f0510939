"""How runs differ: in their settings from a preset and from one another, in data, code, verdict and figures."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from srpo_core.config import load_settings, profile_names, profile_path
from srpo_core.errors import ConfigError
from srpo_core.workspace.run_record import RunRecord, flat

ABSENT: Final = "(absent)"

log = getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """One line of a comparison.

    name: what is compared, such as a dotted setting. first, second: its value in each run, `ABSENT` if it has none.
    """

    name: str
    first: Any
    second: Any

    @property
    def change(self) -> float | None:
        """The second value minus the first, if both are numbers."""
        both = (self.first, self.second)
        if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in both):
            return None
        return float(self.second - self.first)


@dataclass(frozen=True)
class RunComparison:
    """What two runs do not have in common.

    about: state, verdict, code and data, where they differ. settings: by dotted key. rules: every rule of either run,
    with its verdict, value and interval. figures: numbers that differ. files: of the code that differ, None if a ref is
    missing.
    """

    about: tuple[Difference, ...]
    settings: tuple[Difference, ...]
    rules: tuple[Difference, ...]
    figures: tuple[Difference, ...]
    files: tuple[str, ...] | None


class Presets:
    """The presets of a checkout as flat settings: what runs are compared with, also those made with older presets."""

    def __init__(self, root: Path) -> None:
        self._presets: dict[str, dict[str, Any]] = {}
        for name in profile_names(root):
            try:
                settings = load_settings(profile_path(name, root))
            except ConfigError as error:
                log.warning("runs are not compared with the preset %s: %s", name, error)
            else:
                self._presets[name] = dict(flat(settings.model_dump(mode="json")))

    def compare(self, record: RunRecord) -> tuple[str | None, dict[str, Any]]:
        """Return the preset of a run, and the settings that differ from it; for params.yaml the nearest preset is taken.

        All runs of a preset are compared with the same values, so two runs that differ in a setting show it.
        """
        if record.settings is None:
            return record.profile, {}
        given = dict(flat(record.settings))
        if record.profile in self._presets:
            return record.profile, _changed(self._presets[record.profile], given)
        compared = {name: _changed(preset, given) for name, preset in self._presets.items()}
        if not compared:
            return record.profile, given
        nearest = min(compared, key=lambda name: (len(compared[name]), name))
        return nearest, compared[nearest]


def compare_runs(
    first: RunRecord, second: RunRecord, files: Callable[[str, str], list[str] | None]
) -> RunComparison:
    """Compare two runs. files: returns the files that differ between two refs, or None."""
    both = (first, second)
    settings = [dict(flat(record.settings or {})) for record in both]
    rules = [{rule["name"]: rule_summary(rule) for rule in record.rules} for record in both]
    about = [dict(_about(record)) for record in both]
    differ = files(first.ref, second.ref) if first.ref and second.ref else None
    return RunComparison(
        about=tuple(_differences(*about)),
        settings=tuple(_differences(*settings)),
        rules=tuple(
            Difference(name, rules[0].get(name, ABSENT), rules[1].get(name, ABSENT))
            for name in dict.fromkeys((*rules[0], *rules[1]))
        ),
        figures=tuple(_differences(first.figures, second.figures)),
        files=None if differ is None else tuple(differ),
    )


def rule_summary(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a comparison shows of a rule: its verdict, figure, interval and margin."""
    return {key: rule.get(key) for key in ("verdict", "value", "low", "high", "margin")}


def shown(value: Any) -> str:
    """Return a setting as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _about(record: RunRecord) -> Iterable[tuple[str, Any]]:
    yield "state", record.state
    yield "verdict", record.verdict
    yield "preset", record.profile
    yield "commit", record.commit + (" with uncommitted changes" if record.changed else "")
    if record.data:
        yield "data", record.data.tag or f"{record.data.source} {record.data.md5 or ''}".strip()
    yield "release", record.version


def _changed(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have another value than in a preset; one that the run did not know yet is left out."""
    return {key: value for key, value in given.items() if key not in preset or preset[key] != value}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Sequence[Difference]:
    return [
        Difference(key, first.get(key, ABSENT), second.get(key, ABSENT))
        for key in dict.fromkeys((*first, *second))
        if (key in first) != (key in second) or first.get(key) != second.get(key)
    ]
