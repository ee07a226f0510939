"""Garbage collection: remove old versions that nothing needs, and what killed publishers left behind."""

from dataclasses import dataclass
from logging import getLogger

from srpo_core.release.aliases import protected_versions
from srpo_core.release.summary import list_releases
from srpo_core.storage import Store, model_of

log = getLogger(__name__)


@dataclass(frozen=True)
class GarbageCollection:
    """What `collect_garbage` removed, or would remove without `delete`.

    versions: names of versions; leftovers: keys or paths of unfinished publications; deleted: whether they are gone.
    """

    versions: tuple[str, ...]
    leftovers: tuple[str, ...]
    deleted: bool


def collect_garbage(store: Store, *, keep: int, delete: bool = False) -> GarbageCollection:
    """Remove all but the newest `keep` versions of each model, except protected ones (`protected_versions`).

    The aliases are read again before each removal, because one may have been moved to the version meanwhile.

    delete: actually remove; by default only list what would be removed.
    """
    kept = protected_versions(store)
    versions = [release.version for release in list_releases(store)]
    for model in {model_of(version) for version in versions}:
        of_model = [version for version in versions if model_of(version) == model]
        kept |= set(of_model[max(0, len(of_model) - keep) :])
    unneeded = tuple(version for version in versions if version not in kept)
    if delete:
        unneeded = tuple(version for version in unneeded if remove_unprotected(store, version))
    return GarbageCollection(unneeded, tuple(store.sweep(without=unneeded, delete=delete)), delete)


def remove_unprotected(store: Store, version: str) -> bool:
    """Remove a version unless it is protected by now; return whether it was removed."""

    def is_protected() -> bool:
        return version in protected_versions(store)

    if is_protected() or not store.remove(version, unless=is_protected):
        log.warning("kept %s: an alias points to it by now, or it was in production", version)
        return False
    log.info("removed %s", version)
    return True
