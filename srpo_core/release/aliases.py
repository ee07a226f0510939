"""Move aliases: names such as `tiny/production` that point to a version and keep the history of their moves.

Every move is one conditional write of version and history together, so concurrent writers never lose a move.
Each model (`release.name`) has its own aliases.
"""

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import ConfigError, GateError, StoreError
from srpo_core.release.evidence import require_consistent
from srpo_core.release.references import (
    CANDIDATE,
    PRODUCTION,
    REJECTED,
    Alias,
    find_alias,
    read_alias,
    resolve,
)
from srpo_core.release.signing import signed_step
from srpo_core.release.store_page import rebuild_page
from srpo_core.release.trust import release_state, trust_here
from srpo_core.storage import Store, model_of

PREVIOUS: Final = "previous"
ROLLBACK: Final = "rollback"  # marks a step in the history of production
ATTEMPTS: Final = 5

log = getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """A move of an alias: from version `before` (None: it pointed to nothing) to version `after`."""

    alias: str
    before: str | None
    after: str


def move_alias(
    store: Store, name: str, version: str | None, *, why: str, who: str | None = None
) -> str | None:
    """Point the alias `<model>/<name>` to a version (None: to nothing) and return where it pointed before.

    Raises:
        StoreError: the store has no such version, or other writers kept moving the alias.
    """
    if version is not None:
        store.manifest(version)
    for _ in range(ATTEMPTS):
        alias = read_alias(store, name)
        if alias.version == version or _write_move(store, alias, version, why=why, who=who):
            return alias.version
    raise _overtaken(store, name)


def promote(
    store: Store,
    reference: str,
    *,
    reason: str = "",
    override: bool = False,
    who: str | None = None,
    production: Alias | None = None,
) -> Move:
    """Point the model's alias `production` to a version; the former production becomes `previous`.

    If several processes promote at the same time, one succeeds and the others raise.

    override: promote although the gate refused the release; the reason is kept in the history.
    production: the alias as it was when the caller decided, which must not have moved since; None reads it.

    Raises:
        GateError: the gate refused the release.
        ConfigError: an override without a reason.
        StoreError: there is no such release, or another process moved production at the same time. Or its manifest
            contradicts its files.
        SignatureError: the release is not signed as it must be, see `release_state`.
    """
    version = resolve(store, reference)
    production = production or read_alias(store, f"{model_of(version)}/{PRODUCTION}")
    decision = _trusted_manifest(store, version)["decision"]
    passed = decision.get("passed") is True
    if override and not reason:
        raise ConfigError("--override needs --reason: it is kept in the history of production")
    if not passed and not override:
        raise GateError(
            f"the gate refused {version}: {decision.get('reason', 'its manifest gives no reason')} "
            "To promote it anyway: --override --reason '...'"
        )
    why = reason or "promoted"
    return _move_production(store, production, version, why=why if passed else f"override: {why}", who=who)


def rollback(store: Store, *, model: str | None = None, reason: str = "", who: str | None = None) -> Move:
    """Point `production` back to the version before its last promotion.

    Safe to repeat: right after a rollback it moves nothing, and a rollback that was killed between its two writes is
    completed. To go back further, promote an older version.

    model: the model whose production moves; required if the store has several.

    Raises:
        StoreError: production has no previous version, that version was removed, or another process moved production
            at the same time.
    """
    name = find_alias(store, PRODUCTION if model is None else f"{model}/{PRODUCTION}")
    if model is not None and name is None:
        known = ", ".join(sorted({alias.partition("/")[0] for alias in store.aliases()})) or "none"
        raise StoreError(f"{store.uri} has no production of a model {model!r}: known models are {known}")
    production = None if name is None else read_alias(store, name)
    last = production.history[-1] if production and production.history else None
    if production is None or last is None or (last["from"] is None and not last.get(ROLLBACK)):
        raise StoreError(
            f"{name or PRODUCTION} in {store.uri} has no previous version: there is nothing to roll back to"
        )
    if last.get(ROLLBACK):
        _trusted_manifest(store, last["to"])
        return _move_production(store, production, last["to"], why=last["why"], who=who)
    _trusted_manifest(store, last["from"])
    why = reason or "rolled back"
    return _move_production(store, production, last["from"], why=why, who=who, marks={ROLLBACK: True})


def note_rejection(store: Store, version: str, *, why: str, who: str | None = None) -> None:
    """Add to the history of the model's `candidate` that a version was rejected. The alias stays where it is.

    Raises:
        StoreError: other writers kept moving the alias.
    """
    name = f"{model_of(version)}/{CANDIDATE}"
    for _ in range(ATTEMPTS):
        alias = read_alias(store, name)
        if _write_move(store, alias, alias.version, why=why, who=who, marks={REJECTED: version}):
            return
    raise _overtaken(store, name)


def _trusted_manifest(store: Store, version: str) -> Mapping[str, Any]:
    """Return the manifest of a version that may go into production; report who signed it.

    Raises:
        StoreError: the store has no such version, or its manifest contradicts its files.
        SignatureError: it is not signed as it must be, see `release_state`.
    """
    manifest = store.manifest(version)
    require_consistent(store, version, manifest)
    log.info("%s is %s", version, release_state(store, version, manifest, trust_here()))
    return manifest


def _overtaken(store: Store, name: str) -> StoreError:
    return StoreError(
        f"other writers moved the alias {name} in {store.uri} during each of {ATTEMPTS} attempts: "
        "check it with 'srpo releases', then try again"
    )


def _move_production(
    store: Store,
    production: Alias,
    version: str,
    *,
    why: str,
    who: str | None,
    marks: Mapping[str, Any] = MappingProxyType({}),
) -> Move:
    """Move production from the state that was read, then point `previous` to its former version.

    If production already points to `version`, only `previous` is updated: the process before may have been killed
    between the two writes.
    """
    if production.version != version and not _write_move(
        store, production, version, why=why, who=who, marks=marks
    ):
        now = read_alias(store, production.name).version
        raise StoreError(
            f"another process moved {production.name} to {now} at the same time, so {version} was not promoted: "
            "check with 'srpo releases', then promote again if it is still needed"
        )
    _update_previous(store, production.name, who=who)
    rebuild_page(store)
    return Move(production.name, production.version, version)


def _update_previous(store: Store, production: str, *, who: str | None) -> None:
    """Point `previous` to where the last step of production came from, even if another process made that step."""
    previous = f"{production.partition('/')[0]}/{PREVIOUS}"
    done = None
    while history := read_alias(store, production).history:
        step = history[-1]
        if step == done:
            return
        if step["from"] is not None and store.has(step["from"]):
            move_alias(store, previous, step["from"], why=f"production moved to {step['to']}", who=who)
        done = step


def _write_move(
    store: Store,
    alias: Alias,
    version: str | None,
    *,
    why: str,
    who: str | None,
    marks: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """Move an alias by one conditional write; False if another process moved it since it was read.

    If the answer to the write was lost, the store refuses to repeat it, also when another process has moved the alias
    on. Then the history has this move.
    """
    step = _step(alias.version, version, why=why, who=who) | dict(marks)
    step = signed_step(store.uri, alias.name, alias.history, step)
    value = {"version": version, "history": [*alias.history, step]}
    if not store.write_alias(alias.name, value, alias.token):
        return read_alias(store, alias.name).history[len(alias.history) :][:1] == (step,)
    if version is not None:
        _require_kept(store, alias, version)
    return True


def _require_kept(store: Store, before: Alias, version: str) -> None:
    """Check that a version still exists now that an alias points to it; if not, restore the alias to `before`.

    `Store.remove` checks the aliases after it hid a version, so at least one of two concurrent processes notices
    the other.

    Raises:
        StoreError: the version was removed at the same time.
    """
    if store.has(version):
        return
    now = read_alias(store, before.name)
    if now.version == version:  # otherwise another process has already moved the alias
        if before.token is None:
            step = _step(version, None, why=f"{version} was removed at the same time", who=None)
            step = signed_step(store.uri, before.name, now.history, step)
            history = [*now.history, step]
        else:
            history = list(before.history)
        store.write_alias(before.name, {"version": before.version, "history": history}, now.token)
    raise StoreError(
        f"{version} was removed from {store.uri} at the same time, so {before.name} does not point to it: "
        "check with 'srpo releases'"
    )


def _step(before: str | None, after: str | None, *, why: str, who: str | None) -> dict[str, Any]:
    """Build one entry of a history: when, who (default: the user of this process), why, from and to.

    Control characters in `why` are removed and it becomes one line, so that it is safe to print.
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in why).split())
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"when": when, "who": who or user_name(), "why": line, "from": before, "to": after}


def user_name() -> str:
    """Return the user of this process, as histories name him."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # a container may run under a numeric id that has no name
        return f"user {os.getuid()}"
