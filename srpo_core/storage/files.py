"""Write files so that they are on disk, and translate errors of the file system, for the store in a directory."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from srpo_core.errors import StoreError
from srpo_core.runtime.full_disk import is_full
from srpo_core.runtime.progress import Advance, ignore
from srpo_core.storage.manifest import BLOCK, changed_while_published

_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def disk_errors(uri: str, what: str) -> Iterator[None]:
    """Raise errors of the file system as `StoreError`s that name the store, what failed and the next step."""
    try:
        yield
    except OSError as error:
        _raise(error, uri, what)


def _raise(error: OSError, uri: str, what: str) -> NoReturn:
    if is_full(error):
        raise StoreError(
            f"the store {uri} is full and {what}: free space there, or set SRPO_STORE to another store"
        ) from error
    if error.errno in _READ_ONLY:
        raise StoreError(
            f"the store {uri} is read-only and {what}: make it writable, or set SRPO_STORE to another store"
        ) from error
    raise StoreError(f"the store {uri} {what}: {error}") from error


def copy_file(source: Path, target: Path, digest: str, name: str, advance: Advance = ignore) -> None:
    """Copy a file to disk, sync it, and check the digest of the copied bytes; `advance` gets the bytes of each block."""
    seen = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(BLOCK):
            seen.update(block)
            writer.write(block)
            advance(len(block))
        _sync(writer)
    if seen.hexdigest() != digest:
        raise changed_while_published(name)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and sync it."""
    with path.open("xb") as file:
        file.write(data)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_directories(root: Path) -> None:
    """Sync a directory and all directories in it."""
    for directory in (root, *(path for path in root.rglob("*") if path.is_dir())):
        sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_digest(path: Path, digest: str, size: int) -> bool:
    """Return whether a file has this SHA-256 and length; it is read only if the length is right."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def read_if_present(path: Path) -> bytes | None:
    """Return the bytes of a file, or None if there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
