"""A release store in a directory.

models/<model>/versions/<version>/   all files of a version and manifest.json; created by one rename
models/<model>/aliases/<name>.json   replaced by one rename, under a lock
.incoming/                           files being written; the next publisher removes what killed ones left
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import uuid4

from srpo_core.errors import StoreError
from srpo_core.runtime.file_lock import acquire, try_acquire
from srpo_core.storage.manifest import (
    BLOCK,
    MANIFEST,
    FileLostError,
    alias_key,
    changed_while_published,
    decode_alias,
    decode_manifest,
    encode_sealed,
    require_file,
    require_same,
    unknown_version,
    version_key,
)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


class DirectoryStore:
    """A store in a directory of a local or network file system; see `Store` for the methods."""

    def __init__(self, root: Path) -> None:
        """Open the store at `root`. The first publication creates the directory."""
        self._root = root.absolute()
        self.uri = str(self._root)
        self._models = self._root / "models"
        self._incoming = self._root / ".incoming"
        self._incoming_lock = self._root / ".incoming.lock"

    def versions(self) -> list[str]:
        """List the published versions, sorted by name. Raises `StoreError` if the root is a file."""
        if self._root.is_file():
            raise StoreError(f"the store {self.uri} is a file: point SRPO_STORE to a directory")
        with self._errors("cannot be listed"):
            return sorted(path.parent.name for path in self._models.glob(f"*/versions/*/{MANIFEST}"))

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of a version. Raises `StoreError` with the known versions if there is none."""
        manifest = self._manifest(version)
        if manifest is None:
            raise unknown_version(version, self.versions(), self.uri)
        return manifest

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Copy the files, sync, and rename into place; False if the version exists with the same content."""
        if self._is_published(version, manifest):
            return False
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        what = f"cannot store {version} ({size / 1e6:.1f} MB); nothing was published"
        with self._errors(what), self._new_directory() as partial:
            for name, path in files.items():
                _copy(path, partial / name, manifest["files"][name]["sha256"], name)
            _write(partial / MANIFEST, encode_sealed(manifest))
            _sync_directories(partial)
            return self._move_into_place(partial, version, manifest)

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file of a version from byte `start` on, in blocks."""
        require_file(self.manifest(version), name, version, self.uri)
        path = self._root / version_key(version) / name
        if not path.is_file():
            raise FileLostError(
                f"the store {self.uri} has lost {name} of {version}: restore it from a backup"
            )
        with self._errors(f"cannot read {name} of {version}"), path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK):
                yield block

    def local(self, version: str) -> Path | None:
        """Return the version's directory."""
        self.manifest(version)
        return self._root / version_key(version)

    def remove(self, version: str, unless: Callable[[], bool] | None = None) -> bool:
        """Hide a version by one rename, then delete it, or restore it by another rename if `unless()`."""
        with self._errors(f"cannot remove {version}"), self._new_directory() as hidden:
            directory = self._root / version_key(version)
            if not (directory / MANIFEST).is_file():
                return True
            directory.rename(hidden / version)
            restore = True  # also if `unless` raises
            try:
                restore = unless is not None and unless()
            finally:
                if restore:
                    _restore(hidden / version, directory)
            return not restore

    def aliases(self) -> list[str]:
        """List the aliases, each as `<model>/<name>`, sorted."""
        with self._errors("cannot be listed"):
            found = self._models.glob("*/aliases/*.json")
            return sorted(f"{path.parents[1].name}/{path.stem}" for path in found)

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the value of an alias, or None, and the digest of its file as token."""
        path = self._root / alias_key(name)
        with self._errors(f"cannot read the alias {name}"):
            data = _read_if_present(path)
        if data is None:
            return None, None
        return decode_alias(data, str(path)), hashlib.sha256(data).hexdigest()

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Replace the alias file if it still has the digest `token`; False if another process moved it."""
        with self._errors(f"cannot move the alias {name}; it was not moved"):
            path = self._root / alias_key(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._new_directory() as partial, acquire(self._root / ".aliases.lock"):
                if self.alias(name)[1] != token:
                    return False
                _write(partial / path.name, encode_sealed(value))
                (partial / path.name).replace(path)
                _sync_directory(path.parent)
                return True

    def ignored_conditions(self) -> Sequence[str]:
        """Return nothing: a lock file serializes the writers."""
        return ()

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """Return what killed publishers left in .incoming; nothing while another publisher is active."""
        del without  # versions in a directory share no files
        if not self._incoming.is_dir():
            return []
        with self._errors("cannot be cleaned"):
            lock = try_acquire(self._incoming_lock)
            if lock is None:
                return []
            with lock:
                left = sorted(self._incoming.iterdir())
                for path in left if delete else ():
                    shutil.rmtree(path)
                return [str(path.relative_to(self._root)) for path in left]

    def _manifest(self, version: str) -> dict[str, Any] | None:
        path = self._root / version_key(version) / MANIFEST
        with self._errors(f"cannot read {version}"):
            data = _read_if_present(path)
        return None if data is None else decode_manifest(data, str(path))

    def _is_published(self, version: str, manifest: Mapping[str, Any]) -> bool:
        existing = self._manifest(version)
        if existing is not None:
            require_same(existing, manifest, version, self.uri)
        return existing is not None

    def _move_into_place(self, partial: Path, version: str, manifest: Mapping[str, Any]) -> bool:
        target = self._root / version_key(version)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # another publisher was faster: a rename never replaces a directory that is not empty
            return not self._is_published(version, manifest)
        _sync_directory(target.parent)
        return True

    @contextmanager
    def _new_directory(self) -> Iterator[Path]:
        """Create a directory to write to; it is removed afterwards unless it was renamed.

        Publishers hold a shared lock, which the kernel releases when they die. A process that gets the lock
        exclusively is the only one, so what it finds in .incoming was left by killed publishers.
        """
        self._incoming.mkdir(parents=True, exist_ok=True)
        if lock := try_acquire(self._incoming_lock):
            with lock:
                for path in self._incoming.iterdir():
                    shutil.rmtree(path, ignore_errors=True)
        with acquire(self._incoming_lock, shared=True):
            partial = self._incoming / uuid4().hex
            try:
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._raise(error, what)

    def _raise(self, error: OSError, what: str) -> NoReturn:
        if error.errno in _FULL:
            raise StoreError(
                f"the store {self.uri} is full and {what}: free space there, or set SRPO_STORE to another store"
            ) from error
        if error.errno in _READ_ONLY:
            raise StoreError(
                f"the store {self.uri} is read-only and {what}: make it writable, or set SRPO_STORE to another store"
            ) from error
        raise StoreError(f"the store {self.uri} {what}: {error}") from error


def _copy(source: Path, target: Path, digest: str, name: str) -> None:
    """Copy a file to disk, sync it, and check the digest of the copied bytes."""
    seen = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(BLOCK):
            seen.update(block)
            writer.write(block)
        _sync(writer)
    if seen.hexdigest() != digest:
        raise changed_while_published(name)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directories(root: Path) -> None:
    for directory in (root, *(path for path in root.rglob("*") if path.is_dir())):
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _restore(hidden: Path, directory: Path) -> None:
    try:
        hidden.rename(directory)
    except OSError as error:
        # the version may have been published again meanwhile, with the same content
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _read_if_present(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
