"""The settings of ingest that a data version remembers, and those that a run needs to use it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from srpo_core.config import (
    NULL,
    PARAMS_FILE,
    IngestSettings,
    load_settings,
    parse_settings,
    patched,
)
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.data.kept import KeptRecords, open_kept
from srpo_core.data.sources import source_format
from srpo_core.errors import ConfigError
from srpo_core.workspace.git import try_git

# they decide which records there are, and which are kept
READING: Final = ("format", "columns", "test_share", "rules")
# `srpo data` sets them itself
_OWN: Final = ("source", "format", "check_images")


def settings_to_note(ingest: IngestSettings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that read a version in full, and what else was changed for it.

    ingest: of the params.yaml that the version was checked with. changes: those that differed from it.
    """
    whole = IngestSettings.model_validate(patched(ingest.model_dump(), changes)).model_dump(mode="json")
    return {**changes, **{key: whole[key] for key in READING}}


def uncommitted_settings(checkout: Path) -> dict[str, Any]:
    """Return the settings of ingest in which params.yaml of a checkout differs from that of its commit.

    A version is made with the commit's params.yaml, so these are changes to it like those of `--set`.

    Raises:
        ConfigError: one of the two cannot be used, or a column was removed, which no change can express.
    """
    committed = try_git(checkout, "show", f"HEAD:{PARAMS_FILE}")
    if committed is None:
        raise ConfigError(f"{checkout} has no commit with {PARAMS_FILE}: commit it")
    where = f"{PARAMS_FILE} of HEAD"
    before = parse_settings(parse_yaml(committed, where), where).ingest.model_dump(mode="json")
    now = load_settings(checkout / PARAMS_FILE).ingest.model_dump(mode="json")
    changes = {
        key: _changed(before[key], now[key]) for key in now if key not in _OWN and now[key] != before[key]
    }
    if "columns" in changes and patched(before, changes)["columns"] != now["columns"]:
        raise ConfigError(
            f"{PARAMS_FILE} has no longer a column of ingest.columns that is in its commit: commit {PARAMS_FILE}"
        )
    return changes


def _changed(before: Any, now: Any) -> Any:
    """Return the entries of a mapping that differ, and any other value as a whole."""
    if not isinstance(now, Mapping):
        return now
    return {key: value for key, value in now.items() if before.get(key) != value}


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
    """Open the records of a version that its stage ingest kept. The arguments are those of `noted_ingest`.

    findings: see `data_versions.noted`.

    Raises:
        DataError: a file cannot be read.
    """
    return open_kept(noted_ingest(path, ingest, noted), findings)


def noted_ingest(path: Path, ingest: IngestSettings, noted: Mapping[str, Any]) -> IngestSettings:
    """Return the settings that read a version.

    path: of its files. ingest: settings for what the version does not note. noted: see `data_versions.noted`.
    """
    whole = {**ingest.model_dump(), **noted} if "rules" in noted else patched(ingest.model_dump(), noted)
    return IngestSettings.model_validate({**whole, "source": str(path)})


def next_command(tag: str, name: str, format_name: str, changes: Sequence[str]) -> str:
    """Return the command that starts a run with a version. changes: of settings of ingest, as `KEY=VALUE`."""
    chosen = source_format(format_name)
    settings = [f"ingest.source=data/{name}", *changes, f"ingest.format={format_name}"]
    settings += [] if chosen.has_pairs else ["check_reward.max_pairs=null"]
    settings += [] if chosen.has_images else ["train.rollout.source=online"]
    return f"srpo align --revision {tag} {' '.join(f'--set {shlex.quote(one)}' for one in settings)}"


def run_patch(name: str, format_name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of `next_command` as a nested patch of the settings, for a run that an event starts."""
    chosen = source_format(format_name)
    patch: dict[str, Any] = {"ingest": {**changes, "source": f"data/{name}", "format": format_name}}
    if not chosen.has_pairs:
        patch["check_reward"] = {"max_pairs": NULL}
    if not chosen.has_images:
        patch["train"] = {"rollout": {"source": "online"}}
    return patch


def noted_patch(tag: str, noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested patch of the settings for a run with a version. noted: the settings of ingest that it notes."""
    changes = {key: value for key, value in noted.items() if key != "format"}
    return run_patch(tag.split("/")[1], noted["format"], changes)


def as_options(changes: Mapping[str, Any]) -> list[str]:
    """Write changed settings of ingest as `KEY=VALUE`."""
    return [f"ingest.{key}={json.dumps(value)}" for key, value in changes.items()]


def _by_rule(noted: Mapping[str, Any]) -> dict[str, Any]:
    whole = {key: noted[key] for key in READING if key in noted}
    rules = whole.pop("rules", {})
    return whole | {f"rules.{rule}": severity for rule, severity in rules.items()}
