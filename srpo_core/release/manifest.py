"""The manifest of a release, with every part that commands read."""

from collections.abc import Mapping
from typing import Any, Final

from srpo_core.errors import StoreError
from srpo_core.storage import Store

PARTS: Final = (
    *("version", "created_at", "formats"),
    *("decision.verdict", "decision.reason", "git.revision", "proof.formats", "proof.refused"),
)


def release_manifest(store: Store, version: str, *more: str) -> dict[str, Any]:
    """Return the manifest of a version; the store has checked the types of its parts.

    more: further parts that the caller reads.

    Raises:
        StoreError: there is no such version, or its manifest lacks a part that a release has.
    """
    manifest = store.manifest(version)
    missing = [part for part in (*PARTS, *more) if not _has(manifest, part)]
    if missing:
        raise StoreError(
            f"the manifest of {version} in {store.uri} has no {', '.join(missing)}: it was not written by 'srpo align'; "
            "restore it from a backup, or publish again"
        )
    return manifest


def _has(manifest: Mapping[str, Any], part: str) -> bool:
    first, _, rest = part.partition(".")
    return first in manifest and (not rest or rest in manifest[first])
