"""The champion's weights: the transformer of a release, by its immutable version."""

from pathlib import Path
from typing import Final

from srpo_core.artifacts import home
from srpo_core.errors import StoreError
from srpo_core.release.download import download_file
from srpo_core.runtime.digests import read_digest
from srpo_core.runtime.file_lock import acquire
from srpo_core.storage import is_version, listed, open_store

TRANSFORMER: Final = "transformer"


def champion_transformer(version: str) -> Path:
    """Return the directory of a release's transformer; download it if the store is a bucket, and verify every file.

    Raises:
        StoreError: the store of SRPO_STORE has no such version, or one of its files is missing or altered.
    """
    store = open_store()
    if not is_version(version) or not store.has(version):
        known = listed(store.versions())
        raise StoreError(
            f"champion {version!r} is not a version in {store.uri}: known are {known}; set champion to one of them, "
            "or to null"
        )
    digests = {
        name: entry["sha256"]
        for name, entry in store.manifest(version)["files"].items()
        if name.startswith(f"{TRANSFORMER}/")
    }
    if not digests:
        raise StoreError(f"release {version} in {store.uri} has no {TRANSFORMER}/: it cannot be a champion")
    local = store.local(version)
    if local is None:
        directory = home() / "champion" / version
        with acquire(directory.with_name(f".{version}.lock")):  # runs share this directory
            for name, digest in digests.items():
                download_file(store, version, name, digest, directory / name)
        return directory / TRANSFORMER
    for name, digest in digests.items():
        if not (local / name).exists() or read_digest(local / name) != digest:
            raise StoreError(
                f"{name} of champion {version} does not match its manifest: run 'srpo verify {version}'"
            )
    return local / TRANSFORMER
