"""Verify releases: compare every stored file with its manifest, and every alias with the versions that exist."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_core.errors import DamageError, StoreError
from srpo_core.release.evidence import require_consistent
from srpo_core.release.references import read_alias, resolve
from srpo_core.release.trust import SignatureError, Trust, move_state, release_state, trust_here
from srpo_core.runtime.progress import Advance, progress_bar
from srpo_core.storage import DamagedFileError, Store


def verify(store: Store, reference: str) -> Mapping[str, Any]:
    """Verify a release as `inspect` does, by the allowed signers of the working directory; return its manifest."""
    return inspect(store, reference, trust_here())[0]


def inspect(store: Store, reference: str, trust: Trust) -> tuple[Mapping[str, Any], str]:
    """Read every file of a release, compare its SHA-256 and size with the manifest, and check the signature.

    Returns the manifest and who signed it, in words.

    Raises:
        DamageError: files are missing or altered, or are there and not in the manifest; the message names all of them.
            Or the manifest contradicts the files.
        SignatureError: the release is not signed as it must be, see `release_state`.
    """
    version = resolve(store, reference)
    manifest = store.manifest(version)
    files = sorted(manifest["files"].items())
    with progress_bar("read files back", sum(entry["bytes"] for _, entry in files)) as advance:
        damaged = [name for name, entry in files if not _is_intact(store, version, name, entry, advance)]
    if damaged:
        raise DamageError(
            f"release {version} in {store.uri} is damaged: {', '.join(damaged)}; restore it from a backup, or publish "
            "it again"
        )
    if unnamed := store.unnamed_files(version, manifest["files"]):
        raise DamageError(
            f"release {version} in {store.uri} has files that its manifest does not name: {', '.join(unnamed)}; remove "
            "them, nobody has checked them"
        )
    require_consistent(store, version, manifest)
    return manifest, release_state(store, version, manifest, trust)


def verify_aliases(store: Store) -> list[StoreError]:
    """Return one error for each alias that was altered, is not signed as it must be, or names no existing version."""
    faults: list[StoreError] = []
    trust = trust_here()
    for name in store.aliases():
        try:
            alias = read_alias(store, name)
            version = alias.version
            move_state(store.uri, name, version, alias.history, trust)
        except StoreError as error:
            faults.append(error)  # the caller raises once all aliases are read
        else:
            if version is not None and not store.has(version):
                faults.append(
                    DamageError(
                        f"the alias {name} in {store.uri} points to {version}, which does not exist: restore it from a "
                        "backup or move the alias"
                    )
                )
    return faults


def joined(faults: Sequence[StoreError]) -> StoreError:
    """Return all faults as one error: a `DamageError` if one of them is not about reaching the store."""
    text = "; ".join(map(str, faults))
    damaged = any(isinstance(fault, DamageError | SignatureError) for fault in faults)
    return DamageError(text) if damaged else StoreError(text)


def _is_intact(store: Store, version: str, name: str, entry: Mapping[str, Any], advance: Advance) -> bool:
    seen, size = hashlib.sha256(), 0
    try:
        for block in store.read(version, name):
            seen.update(block)
            size += len(block)
            advance(len(block))
    except DamagedFileError:
        return False
    return (seen.hexdigest(), size) == (entry["sha256"], entry["bytes"])
