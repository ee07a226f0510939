"""Garbage collection: remove old versions that nothing needs, and what killed publishers left behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Final

from srpo_core.release.references import protected_versions
from srpo_core.release.store_page import rebuild_page
from srpo_core.release.summary import list_releases
from srpo_core.storage import Store, model_of

log = getLogger(__name__)


# Versions that are hidden together before the aliases are read once more.
BATCH: Final = 100


@dataclass(frozen=True)
class GarbageCollection:
    """What `collect_garbage` removed, or would remove without `delete`.

    versions: names of versions; leftovers: keys or paths of unfinished publications; deleted: whether they are gone;
    unreadable: one message for each version that is kept because its manifest cannot be read.
    """

    versions: tuple[str, ...]
    leftovers: tuple[str, ...]
    deleted: bool
    unreadable: tuple[str, ...] = ()


def collect_garbage(store: Store, *, keep: int, delete: bool = False) -> GarbageCollection:
    """Remove all but the newest `keep` versions of each model, except protected ones (`protected_versions`).

    A version whose manifest cannot be read is kept and not counted. The aliases are read again when versions are
    hidden, because one may have been moved to a version meanwhile.

    delete: actually remove; by default only list what would be removed.
    """
    kept = protected_versions(store)
    manifests = dict(store.manifests(store.versions()))
    releases = list_releases(store, manifests=manifests)
    versions = [release.version for release in releases if release.fault is None]
    for model in {model_of(version) for version in versions}:
        of_model = [version for version in versions if model_of(version) == model]
        kept |= set(of_model[max(0, len(of_model) - keep) :])
    unneeded = [version for version in versions if version not in kept]
    if delete:
        unneeded = [
            version
            for start in range(0, len(unneeded), BATCH)
            for version in remove_unprotected(store, unneeded[start : start + BATCH])
        ]
    # a removed version that is published again meanwhile needs its objects
    leftovers = store.sweep(without=() if delete else unneeded, delete=delete)
    if delete:
        rebuild_page(store, manifests)
    faults = tuple(f"{release.version}: {release.fault}" for release in releases if release.fault is not None)
    return GarbageCollection(tuple(unneeded), tuple(leftovers), delete, faults)


def remove_unprotected(store: Store, versions: Sequence[str]) -> list[str]:
    """Remove those of the versions that are not protected by now; return the removed ones."""
    protected = protected_versions(store)
    removed = store.remove(
        [version for version in versions if version not in protected],
        needed=lambda: protected_versions(store),
    )
    for version in versions:
        if version in removed:
            log.info("removed %s", version)
        else:
            log.warning("kept %s: an alias points to it by now, or it was in production", version)
    return removed
