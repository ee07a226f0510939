"""The settings of ingest that a data version remembers, and those that a run needs to use it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from srpo_core.config import IngestSettings, patched
from srpo_core.data.kept import KeptRecords, open_kept
from srpo_core.data.sources import source_format

# they decide which records there are, and which are kept
READING: Final = ("format", "columns", "test_share", "rules")


def settings_to_note(ingest: IngestSettings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that read a version in full, and what else was changed for it.

    ingest: of the params.yaml that the version was checked with. changes: those that differed from it.
    """
    whole = IngestSettings.model_validate(patched(ingest.model_dump(), changes)).model_dump(mode="json")
    return {**changes, **{key: whole[key] for key in READING}}


def other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the settings that read a version and differ; empty if none does. An old version notes only some."""
    old, new = _by_rule(before), _by_rule(now)
    return ", ".join(
        f"ingest.{key} {json.dumps(old[key])} instead of {json.dumps(value)}"
        for key, value in new.items()
        if old.get(key, value) != value
    )


def open_noted(
    path: Path,
    ingest: IngestSettings,
    noted: Mapping[str, Any],
    findings: Mapping[str, Mapping[str, Any]] | None,
) -> KeptRecords:
    """Open the records of a version that its stage ingest kept.

    path: of its files. ingest: settings for what the version does not note. noted, findings: see
    `data_versions.noted`.

    Raises:
        DataError: a file cannot be read.
    """
    whole = {**ingest.model_dump(), **noted} if "rules" in noted else patched(ingest.model_dump(), noted)
    return open_kept(IngestSettings.model_validate({**whole, "source": str(path)}), findings)


def next_command(tag: str, name: str, format_name: str, changes: Sequence[str]) -> str:
    """Return the command that starts a run with a version. changes: of settings of ingest, as `KEY=VALUE`."""
    chosen = source_format(format_name)
    settings = [f"ingest.source=data/{name}", *changes, f"ingest.format={format_name}"]
    settings += [] if chosen.has_pairs else ["check_reward.max_pairs=null"]
    settings += [] if chosen.has_images else ["train.rollout.source=online"]
    return f"srpo align --revision {tag} {' '.join(f'--set {shlex.quote(one)}' for one in settings)}"


def as_options(changes: Mapping[str, Any]) -> list[str]:
    """Write changed settings of ingest as `KEY=VALUE`."""
    return [f"ingest.{key}={json.dumps(value)}" for key, value in changes.items()]


def _by_rule(noted: Mapping[str, Any]) -> dict[str, Any]:
    whole = {key: noted[key] for key in READING if key in noted}
    rules = whole.pop("rules", {})
    return whole | {f"rules.{rule}": severity for rule, severity in rules.items()}
