"""Verify releases: compare every stored file with its manifest, and every alias with the versions that exist."""

import hashlib
from collections.abc import Mapping
from typing import Any

from srpo_core.errors import StoreError
from srpo_core.release.aliases import read_alias, resolve
from srpo_core.storage import DamagedFileError, Store


def verify(store: Store, reference: str) -> Mapping[str, Any]:
    """Read every file of a release, compare its SHA-256 and size with the manifest, and return the manifest.

    Raises:
        StoreError: files are missing or altered; the message names all of them.
    """
    version = resolve(store, reference)
    manifest = store.manifest(version)
    damaged = [
        name
        for name, entry in sorted(manifest["files"].items())
        if not _is_intact(store, version, name, entry)
    ]
    if damaged:
        raise StoreError(
            f"release {version} in {store.uri} is damaged: {', '.join(damaged)}; restore it from a backup, or publish "
            "it again"
        )
    return manifest


def verify_aliases(store: Store) -> list[str]:
    """Return one message for each alias that was altered or that points to a version that does not exist."""
    faults: list[str] = []
    for name in store.aliases():
        try:
            version = read_alias(store, name).version
        except StoreError as error:
            faults.append(str(error))  # the caller raises once all aliases are read
        else:
            if version is not None and not store.has(version):
                faults.append(
                    f"the alias {name} in {store.uri} points to {version}, which does not exist: restore it from a "
                    "backup or move the alias"
                )
    return faults


def _is_intact(store: Store, version: str, name: str, entry: Mapping[str, Any]) -> bool:
    seen, size = hashlib.sha256(), 0
    try:
        for block in store.read(version, name):
            seen.update(block)
            size += len(block)
    except DamagedFileError:
        return False
    return (seen.hexdigest(), size) == (entry["sha256"], entry["bytes"])
