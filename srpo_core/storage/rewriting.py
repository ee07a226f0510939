"""Replace files of a store in a directory: damaged ones of a version, and those that change, under a condition."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo_core.runtime.file_lock import acquire
from srpo_core.storage.files import copy_file, has_digest, read_if_present, sync_directory, write_file
from srpo_core.storage.incoming import Incoming
from srpo_core.storage.manifest import MANIFEST, encode_sealed


def state_of(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None if there is none."""
    data = read_if_present(path)
    return None if data is None else hashlib.sha256(data).hexdigest()


def replace_if(incoming: Incoming, lock: Path, target: Path, data: bytes, state: str | None) -> bool:
    """Replace a file by one rename, under a lock, if its state is still `state`; False if another process replaced it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with incoming.new_directory() as partial, acquire(lock):
        if state_of(target) != state:
            return False
        write_file(partial / target.name, data)
        (partial / target.name).replace(target)
        sync_directory(target.parent)
        return True


def replace_file(incoming: Incoming, source: Path, directory: Path, name: str, digest: str) -> None:
    """Replace a file of a version by one rename; `digest` is the SHA-256 that the source must have."""
    with incoming.new_directory() as partial:
        copy_file(source, partial / "file", digest, name)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / "file").replace(directory / name)
        sync_directory((directory / name).parent)


def rewrite(
    directory: Path, incoming: Incoming, files: Mapping[str, Path], manifest: Mapping[str, Any]
) -> None:
    """Write a version whose manifest is damaged again: each file that differs, and the manifest last."""
    for name, entry in manifest["files"].items():
        if not has_digest(directory / name, entry["sha256"], entry["bytes"]):
            replace_file(incoming, files[name], directory, name, entry["sha256"])
    with incoming.new_directory() as partial:
        write_file(partial / MANIFEST, encode_sealed(manifest))
        (partial / MANIFEST).replace(directory / MANIFEST)
        sync_directory(directory)
