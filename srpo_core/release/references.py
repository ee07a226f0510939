"""Read aliases, and find the version that a name refers to. An alias is named `<model>/<name>`."""

from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Final

from srpo_core.errors import StoreError
from srpo_core.release.seen import require_not_set_back
from srpo_core.release.trust import UNCHECKED, UNSIGNED, move_state, release_state, trust_here
from srpo_core.storage import Store, is_version, listed

CANDIDATE: Final = "candidate"
PRODUCTION: Final = "production"
REJECTED: Final = (
    "rejected"  # marks a step that moves nothing and records that a person rejected the version it names
)

Step = Mapping[str, Any]
log = getLogger(__name__)


@dataclass(frozen=True)
class Alias:
    """The state of an alias when it was read.

    name: `<model>/<name>`; version: the version it points to, or None; history: its moves, oldest first;
    token: names this state for a conditional write, None if the alias does not exist.
    """

    name: str
    version: str | None
    history: tuple[Step, ...]
    token: str | None


def read_alias(store: Store, name: str) -> Alias:
    """Read the alias `<model>/<name>`; one that does not exist points to nothing and has no history."""
    value, token = store.alias(name)
    if value is None:
        return Alias(name, None, (), token)
    return Alias(name, value["version"], tuple(value["history"]), token)


def find_alias(store: Store, name: str) -> str | None:
    """Return the full name `<model>/<name>` of an alias given with or without its model, or None.

    Raises:
        StoreError: several models have an alias of this name.
    """
    found = [alias for alias in store.aliases() if name in (alias, alias.partition("/")[2])]
    if len(found) > 1:
        raise StoreError(
            f"several models in {store.uri} have an alias {name}: choose one of {', '.join(found)}"
        )
    return found[0] if found else None


def resolve(store: Store, reference: str) -> str:
    """Return the version that a version name or an alias refers to.

    reference: a version, `<model>/<alias>`, or just the alias if only one model in the store has it.

    Raises:
        StoreError: there is no such release (the message lists the known ones), or several models have the alias.
        SignatureError: the last move of the alias is not signed as it must be, see `move_state`, or the alias was set
            back.
    """
    if is_version(reference) and store.has(reference):
        return reference
    name = find_alias(store, reference)
    if name is None:
        known = listed([*store.aliases(), *store.versions()])
        raise StoreError(f"{store.uri} has no release {reference!r}: known are {known}")
    alias = read_alias(store, name)
    if alias.version is None:
        raise StoreError(f"the alias {name} in {store.uri} points to nothing: publish a model first")
    _require_trusted(store, alias)
    return alias.version


def in_production(store: Store, model: str) -> str | None:
    """Return the version of `model` that is in production, or None. The store may lack this version.

    Raises:
        SignatureError: the version or the last move of the alias is not signed as it must be, or the alias was set back.
    """
    alias = read_alias(store, f"{model}/{PRODUCTION}")
    if alias.version is not None:
        _require_trusted(store, alias)
        if store.has(alias.version):
            release_state(store, alias.version, store.manifest(alias.version), trust_here())
    return alias.version


def _require_trusted(store: Store, alias: Alias) -> None:
    state = move_state(store.uri, alias.name, alias.version, alias.history, trust_here())
    if state not in (UNSIGNED, UNCHECKED):
        require_not_set_back(store.uri, alias.name, alias.history)
    log.info("%s points to %s: the move is %s", alias.name, alias.version, state)


def history_of(store: Store, version: str) -> Mapping[str, list[Step]]:
    """Return, for each alias that ever pointed to `version`, its moves to and from it and its rejections, oldest first.

    An alias that cannot be read is left out, and the reason is logged.
    """
    histories = {}
    for name in store.aliases():
        try:
            history = read_alias(store, name).history
        except StoreError as error:
            log.warning("%s", error)
        else:
            histories[name] = [step for step in history if _is_about(step, version)]
    return {name: steps for name, steps in histories.items() if steps}


def _is_about(step: Step, version: str) -> bool:
    """Whether a step moved an alias to or from a version, or rejected it."""
    return version in ((step[REJECTED],) if REJECTED in step else (step["from"], step["to"]))


def protected_versions(store: Store) -> set[str | None]:
    """Return the versions that must be kept: those an alias points to, and all that were ever in production."""
    protected: set[str | None] = set()
    for name in store.aliases():
        alias = read_alias(store, name)
        protected.add(alias.version)
        if name.endswith(f"/{PRODUCTION}"):
            protected |= {step["to"] for step in alias.history}
    return protected
