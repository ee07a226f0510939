"""Which version is in production: promote, roll back, pull, clean up. Every move is conditional and remembered."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.errors import ConfigError, GateError, StoreError
from srpo_core.release.publishing import (
    PRODUCTION,
    held_versions,
    move_alias,
    remove_unheld,
    require_held,
    step_of,
)
from srpo_core.release.reading import find_alias, list_releases, resolve
from srpo_core.storage import MANIFEST, Store, model_of

PREVIOUS: Final = "previous"
ROLLBACK: Final = "rollback"  # marks a step of production's history
PART_SUFFIX: Final = ".part"

log = getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """An alias that was moved: from which version (None: it is new) to which."""

    alias: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Cleaning:
    """What `collect` removes, or would: versions, and leftovers of killed uploads by their keys."""

    versions: tuple[str, ...]
    leftovers: tuple[str, ...]
    done: bool


def promote(
    store: Store, reference: str, *, reason: str = "", override: bool = False, who: str | None = None
) -> Move:
    """Make a version its model's production; what was production becomes `previous`.

    Of several promoters at the same moment one wins and the others are told.

    override: promote although the gate's decision is not `passed`; the reason is kept in the history.

    Raises:
        GateError: the release's decision is not `passed`.
        ConfigError: an override without a reason.
        StoreError: there is no such release, or another promoter was faster.
    """
    version = resolve(store, reference)
    production = f"{model_of(version)}/{PRODUCTION}"
    value, token = store.alias(production)
    decision = store.manifest(version).get("decision", {})
    passed = decision.get("passed") is True
    if override and not reason:
        raise ConfigError("--override needs --reason: it is kept in the history of production")
    if not passed and not override:
        raise GateError(
            f"the gate refused {version}: {decision.get('reason', 'its manifest gives no reason')} "
            "To promote it nevertheless: --override --reason '...'"
        )
    why = reason or "promoted"
    why = why if passed else f"override: {why}"
    return _move(store, production, (value, token), version, why=why, who=who)


def rollback(store: Store, *, model: str | None = None, reason: str = "", who: str | None = None) -> Move:
    """Make the version that production held before its last promotion production again.

    Right after a rollback it moves nothing, so that a command that is given again, because it was killed or its
    end was not seen, never puts the bad release back: further back leads `promote`. One that was killed between
    its two steps is ended.

    model: whose production; needed where the store has that of several.

    Raises:
        StoreError: production has no version before, it is gone, or another moved production meanwhile.
    """
    production = find_alias(store, PRODUCTION if model is None else f"{model}/{PRODUCTION}")
    value, token = (None, None) if production is None else store.alias(production)
    last = None if value is None else value["history"][-1]
    if production is not None and last is not None and last.get(ROLLBACK):
        return _move(store, production, (value, token), last["to"], why=last["why"], who=who)
    if model is not None and production is None:
        known = ", ".join(sorted({name.partition("/")[0] for name in store.aliases()})) or "none"
        raise StoreError(f"{store.uri} has no production of a model {model!r}: known are {known}")
    if production is None or last is None or last["from"] is None:
        raise StoreError(
            f"{production or PRODUCTION} in {store.uri} has held no version before: there is nothing to roll back to"
        )
    store.manifest(last["from"])
    why = reason or "rolled back"
    return _move(store, production, (value, token), last["from"], why=why, who=who, marks={ROLLBACK: True})


def show(store: Store, reference: str) -> tuple[Mapping[str, Any], Mapping[str, list[Mapping[str, Any]]]]:
    """The manifest of a release, and the moves of each alias that has ever pointed to it, oldest first."""
    version = resolve(store, reference)
    moves: dict[str, list[Mapping[str, Any]]] = {}
    for alias in store.aliases():
        value, _ = store.alias(alias)
        steps = [step for step in (value or {}).get("history", ()) if version in (step["from"], step["to"])]
        if steps:
            moves[alias] = steps
    return store.manifest(version), moves


def pull(store: Store, reference: str, *, format_name: str | None, target: Path) -> list[Path]:
    """Bring the files of one format (None: all files) of a release to `target`/, each held to its SHA-256.

    What is there already is kept, and a file that a killed pull left half goes on from where it ended.

    Raises:
        ConfigError: the release has no such format.
        StoreError: there is no such release, a file is not what its manifest says, or it cannot be written here.
    """
    version = resolve(store, reference)
    manifest = store.manifest(version)
    names = list(manifest["files"]) if format_name is None else _files_of(manifest, format_name)
    paths = {name: target / name for name in names}
    try:
        for name, path in paths.items():
            _pull_file(store, version, name, manifest["files"][name]["sha256"], path)
        artifacts.write_json(target / MANIFEST, manifest)
    except OSError as error:
        raise StoreError(
            f"release {version} cannot be written to {target} ({error}): make room there, then the same command "
            "goes on"
        ) from error
    return list(paths.values())


def collect(store: Store, *, keep: int, delete: bool = False) -> Cleaning:
    """Remove all but the newest `keep` versions of each model; never what an alias points to or production has ever held.

    The aliases are read again before each removal: one may have come to the version meanwhile.

    delete: without it nothing is touched, and what would go is returned.
    """
    held = held_versions(store)
    versions = [release.version for release in list_releases(store)]
    for model in {model_of(version) for version in versions}:
        of_model = [version for version in versions if model_of(version) == model]
        held |= set(of_model[max(0, len(of_model) - keep) :])
    doomed = tuple(version for version in versions if version not in held)
    if delete:
        doomed = tuple(version for version in doomed if remove_unheld(store, version))
    return Cleaning(doomed, tuple(store.sweep(without=doomed, delete=delete)), delete)


def _move(
    store: Store,
    production: str,
    state: tuple[Mapping[str, Any] | None, str | None],
    version: str,
    *,
    why: str,
    who: str | None,
    marks: Mapping[str, Any] = MappingProxyType({}),
) -> Move:
    """Move production from the state that was read, then note where it stood as `previous`.

    What is production already is not moved, but `previous` is noted: the mover before may have been killed.
    """
    value, token = state
    before = None if value is None else value["version"]
    if before == version:
        _note_previous(store, production, who=who)
        return Move(production, before, version)
    history = [
        *(() if value is None else value["history"]),
        step_of(before, version, why=why, who=who) | dict(marks),
    ]
    if not store.write_alias(production, {"version": version, "history": history}, token):
        now, _ = store.alias(production)
        raise StoreError(
            f"another moved {production} to {None if now is None else now['version']} at the same moment, so "
            f"{version} was not promoted: look with 'srpo releases', and promote again if it still should be"
        )
    require_held(store, production, version, value)
    _note_previous(store, production, who=who)
    return Move(production, before, version)


def _note_previous(store: Store, production: str, *, who: str | None) -> None:
    """Point `previous` to where the last step of production came from, also when it is another's step by now."""
    previous = _previous_of(production)
    noted = None
    while (step := _last_step(store, production)) not in (None, noted):
        if step["from"] in store.versions():
            move_alias(store, previous, step["from"], why=f"production moved to {step['to']}", who=who)
        noted = step


def _previous_of(production: str) -> str:
    return f"{production.partition('/')[0]}/{PREVIOUS}"


def _last_step(store: Store, alias: str) -> Any:
    value, _ = store.alias(alias)
    return None if value is None else value["history"][-1]


def _files_of(manifest: Mapping[str, Any], format_name: str) -> list[str]:
    name = format_name.lower()
    known = manifest["formats"]
    if name not in known:
        raise ConfigError(
            f"release {manifest['version']} has no format {format_name!r}: known are {', '.join(known)}"
        )
    directories = {file.rpartition("/")[0] for file in known[name] if "/" in file}
    configs = [f"{directory}/config.json" for directory in sorted(directories)]
    return [*known[name], *(config for config in configs if config in manifest["files"])]


def _pull_file(store: Store, version: str, name: str, digest: str, path: Path) -> None:
    """Bring one file, from where a part of it ends; a part that is not its beginning is brought anew."""
    if path.is_file() and artifacts.sha256(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PART_SUFFIX)
    for start in dict.fromkeys((partial.stat().st_size if partial.is_file() else 0, 0)):
        if _append(store, version, name, partial, start) == digest:
            partial.replace(path)
            return
    partial.unlink()
    raise StoreError(f"{name} of {version} does not have its SHA-256: run 'srpo verify', then restore it")


def _append(store: Store, version: str, name: str, partial: Path, start: int) -> str:
    """Go on with a part at `start`; returns the digest of the whole."""
    seen = hashlib.sha256()
    with partial.open("r+b" if start else "wb") as file:
        while start and (block := file.read(1 << 20)):
            seen.update(block)
        for block in store.read(version, name, start):
            seen.update(block)
            file.write(block)
    return seen.hexdigest()
