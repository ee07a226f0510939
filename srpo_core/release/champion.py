"""The champion's weights: those of a release, by its immutable version."""

from pathlib import Path
from typing import Final

from srpo_core.artifacts import home, replacing, sha256
from srpo_core.errors import StoreError
from srpo_core.storage import open_store

TRANSFORMER: Final = "transformer"


def champion_transformer(version: str) -> Path:
    """The directory of a release's transformer; from a bucket it is downloaded, and every file is verified.

    Raises:
        StoreError: the store of SRPO_STORE has no such version, or a file of it is lost or altered.
    """
    store = open_store()
    if version not in store.versions():
        known = ", ".join(store.versions()) or "none"
        raise StoreError(
            f"champion {version!r} is no version in {store.uri}: known are {known}; set champion to one of them, or null"
        )
    files = {
        name: entry["sha256"]
        for name, entry in store.manifest(version)["files"].items()
        if name.startswith(f"{TRANSFORMER}/")
    }
    local = store.local(version)
    root = local or home() / "champion" / version
    for name, digest in files.items():
        if local is None and not (root / name).exists():
            with replacing(root / name) as partial, partial.open("wb") as file:
                for block in store.read(version, name):
                    file.write(block)
        if not (root / name).exists() or sha256(root / name) != digest:
            raise StoreError(f"{name} of champion {version} is not as published: run 'srpo verify {version}'")
    if not files:
        raise StoreError(f"release {version} in {store.uri} has no {TRANSFORMER}/: it cannot be a champion")
    return root / TRANSFORMER
