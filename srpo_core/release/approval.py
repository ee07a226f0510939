"""A person's decision about a candidate: approve it, so that it becomes production, or reject it."""

from typing import Final

from srpo_core.errors import ConfigError, StoreError
from srpo_core.release.aliases import Move, note_rejection, promote
from srpo_core.release.references import CANDIDATE, PRODUCTION, read_alias, resolve
from srpo_core.release.store_page import rebuild_page
from srpo_core.storage import Store, model_of

ANY: Final = "any"  # no version has this name


def approve(
    store: Store, reference: str, *, why: str, who: str | None = None, champion: str | None = ANY
) -> Move:
    """Make the candidate of its model production, as `promote` does; who and why are kept in the history.

    A version that is production already stays so.

    reference: a version, or an alias such as candidate.
    champion: the version in production that the candidate was compared with, None if there was none.

    Raises:
        ConfigError: no reason is given.
        StoreError: the version is not the candidate any more, or another one than `champion` is in production. Or
            `promote` raises it.
        GateError, SignatureError: `promote` raises it.
    """
    version, why = resolve(store, reference), _reason(why)
    model = model_of(version)
    production = read_alias(store, f"{model}/{PRODUCTION}")
    if production.version != version:
        candidate = read_alias(store, f"{model}/{CANDIDATE}").version
        if candidate != version:
            raise StoreError(
                f"{version} is not the candidate of {model} any more, {candidate or 'nothing'} is: nothing was promoted; "
                f"look at 'srpo releases', then 'srpo promote {version}' if it is still the one you want"
            )
        if champion not in (ANY, production.version):
            raise StoreError(
                f"{version} was compared with {champion or 'no release in production'}, and "
                f"{production.version or 'none'} is in production since then: nothing was promoted; look at 'srpo show "
                f"production', then 'srpo approve {version}' if it is still the better one"
            )
    return promote(store, version, reason=f"approved: {why}", who=who, production=production)


def reject(store: Store, reference: str, *, why: str, who: str | None = None) -> str:
    """Record that a version was rejected, with who and why, and return its name. No alias moves.

    Raises:
        ConfigError: no reason is given.
        StoreError: the version is in production, or there is no such version.
    """
    version, why = resolve(store, reference), _reason(why)
    model = model_of(version)
    if read_alias(store, f"{model}/{PRODUCTION}").version == version:
        raise StoreError(
            f"{version} is in production, so it cannot be rejected: 'srpo rollback {model}' restores the release before it"
        )
    note_rejection(store, version, why=f"rejected: {why}", who=who)
    rebuild_page(store)
    return version


def _reason(why: str) -> str:
    if not why.strip():
        raise ConfigError("a decision needs a reason: it is kept in the history of the release")
    return why
