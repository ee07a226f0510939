"""Files by URI: in a directory of this machine, or in object storage that all workers of a cluster can reach.

`SRPO_SHARED` is the location through which workers exchange files: a path, `file://…` or `s3://bucket/prefix`
(boto3 finds credentials and endpoint). Without it, workers share this machine's disk.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_core.artifacts import private_temporary_directory, replacing, sha256, user_path
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.runtime import file_lock
from srpo_core.runtime.digests import known_digest

CHUNK = 8 << 20
OLD_VARIABLE = "SRPO_STORAGE"
PARTIAL = ".part"  # suffix of a file while `Location.write` writes it
COMPLETE = "complete"  # a marker: created after the last shared file, deleted before the first one


@dataclass(frozen=True)
class Location:
    """A file or directory by its URI."""

    uri: str

    @classmethod
    def of(cls, where: str | Path) -> "Location":
        """Return the location of a URI, or of a path, which is made absolute.

        Raises:
            ConfigError: the scheme of the URI is not supported.
        """
        text = str(where)
        if "://" not in text:
            return cls(str(user_path(text)))
        known = ("file", "s3", "memory")
        if (scheme := text.partition("://")[0]) not in known:
            raise ConfigError(f"{text}: unknown storage {scheme!r}: use a path, file:// or s3://")
        return cls(text.rstrip("/"))

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rpartition("/")[2]

    @property
    def path(self) -> Path | None:
        """The path, if the location is on a mounted file system."""
        if "://" not in self.uri:
            return Path(self.uri)
        return Path(self.uri.removeprefix("file://")) if self.uri.startswith("file://") else None

    def exists(self) -> bool:
        """Return whether the file exists, or a file below the directory."""
        fs, path = self._fs()
        return bool(fs.exists(path))

    def names(self) -> list[str]:
        """Return the names of the direct children, sorted; empty if there are none."""
        fs, path = self._fs()
        if not fs.exists(path):
            return []
        return sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))

    def files(self) -> list[str]:
        """Return the relative paths of all files below, sorted."""
        fs, path = self._fs()
        found = fs.find(path) if fs.exists(path) else []
        root = fs._strip_protocol(path).rstrip("/") + "/"
        return sorted(fs._strip_protocol(entry).removeprefix(root) for entry in found)

    def read_text(self) -> str:
        """The contents of a text file. Raises `FileNotFoundError`."""
        return self.read_bytes().decode()

    def read_bytes(self) -> bytes:
        """The contents of a file. Raises `FileNotFoundError`."""
        fs, path = self._fs()
        return bytes(fs.cat_file(path))

    def write(self, content: bytes) -> None:
        """Write a file atomically."""
        if self.path is None:
            fs, path = self._fs()
            fs.pipe_file(path, content)  # objects are written atomically
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}{PARTIAL}")
        partial.write_bytes(content)
        partial.replace(self.path)

    def append(self, name: str, line: str) -> None:
        """Append a line to the file `name` below, to which no other process writes."""
        file = self / name
        if file.path is None:
            before = file.read_text() if file.exists() else ""
            file.write((before + line + "\n").encode())
            return
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with file.path.open("a", encoding="utf-8") as opened:
            opened.write(line + "\n")

    def sha256(self) -> str:
        """Return the SHA-256 of a file as 64 hex digits. Raises `FileNotFoundError`."""
        fs, path = self._fs()
        digest = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def delete(self) -> None:
        """Delete a file, or a directory and all files below; do nothing if it does not exist."""
        fs, path = self._fs()
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def upload(self, source: Path) -> None:
        """Copy a file, or the files below a directory, to this location."""
        fs, path = self._fs()
        for file in [source] if source.is_file() else (p for p in sorted(source.rglob("*")) if p.is_file()):
            target = path if source.is_file() else f"{path}/{file.relative_to(source)}"
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            if self.path is None:
                fs.put_file(str(file), target)  # objects are written atomically
                continue
            with replacing(Path(target)) as partial:  # a task may read the file that another run has shared
                fs.put_file(str(file), str(partial))

    def download(self, target: Path) -> None:
        """Copy this file to a path atomically. Raises `FileNotFoundError`."""
        fs, path = self._fs()
        with replacing(target) as partial:
            fs.get_file(path, str(partial))

    def _fs(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        # no cached listings: other processes write the files that this one lists
        options = {"use_listings_cache": False, "skip_instance_cache": False} if self.path is None else {}
        fs, path = url_to_fs(self.uri, **options)
        return fs, path


def storage() -> Location | None:
    """Return the location that `SRPO_SHARED` names; None for this machine's disk.

    Raises:
        ConfigError: the variable's old name is set, or no file system of this kind is known.
    """
    if OLD_VARIABLE in os.environ:
        raise ConfigError(f"the variable {OLD_VARIABLE} is now SRPO_SHARED: rename it in the environment")
    where = os.environ.get("SRPO_SHARED")
    return Location.of(where) if where else None


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Return files, and all files below directories, by their relative path: workers on other machines use the same.

    Raises:
        ConfigError: a path is absolute or outside the project, so workers on other machines could not find it.
    """
    files: dict[str, Path] = {}
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{path}: with SRPO_SHARED a path must be relative and inside the project")
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        files |= {str(file): file for file in found}
    return files


def content_location(files: Mapping[str, Path], below: Location) -> Location:
    """Return the location of files whose name says their names and digests: the same for the same content."""
    lines = sorted(f"{name} {known_digest(file)}\n" for name, file in files.items())
    return below / hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def share(files: Mapping[str, Path], location: Location) -> dict[str, str]:
    """Copy files below a location, unless they are already there; return their digests by name."""
    if not (location / COMPLETE).exists():
        for name, file in files.items():
            (location / name).upload(file)
        (location / COMPLETE).write(b"")
    return {name: known_digest(file) for name, file in files.items()}


@contextmanager
def local_copy(location: Location, digests: Mapping[str, str]) -> Iterator[Path]:
    """Provide a directory on this machine with the files `digests` of a location: itself if mounted, else a copy.

    The processes of a machine share the copy; the last one deletes it.

    Raises:
        ArtifactError: a file is missing in the location, or does not have its digest.
        ConfigError: another user made the directory of the copies.
    """
    if location.path is not None:
        yield location.path
        return
    name = hashlib.sha256(location.uri.encode()).hexdigest()[:12]
    root = private_temporary_directory(Path(tempfile.gettempdir()) / f"srpo-{os.geteuid()}")
    target = root / name
    with file_lock.acquire(root / f"{name}.readers", shared=True) as readers:
        try:
            with file_lock.acquire(root / f"{name}.fetching"):
                _download(location, target, digests)
            yield target
        finally:
            if readers.try_upgrade():  # no other process reads the copy
                shutil.rmtree(target, ignore_errors=True)
                _verified_file(target).unlink(missing_ok=True)


def _download(location: Location, target: Path, digests: Mapping[str, str]) -> None:
    """Download the files of a location that are missing or do not have their digest.

    A file that another process of this machine has verified is not read again: FLUX.1-dev has 47 GB.
    """
    fs, path = location._fs()
    verified = _VerifiedFiles(target)
    for name, digest in digests.items():
        file = target / name
        if verified.is_unchanged(name, digest):
            continue
        if file.is_file() and sha256(file) == digest:
            verified.add(name, digest)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.get_file(f"{path}/{name}", str(file))
        except FileNotFoundError:
            raise ArtifactError(f"{location}/{name} is missing: see SRPO_SHARED") from None
        if sha256(file) != digest:
            raise ArtifactError(
                f"{location}/{name} does not have its digest: it was changed after it was shared"
            )
        verified.add(name, digest)


def _verified_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.verified")


class _VerifiedFiles:
    """The verified files of a copy with what changes when a file does, stored in a file beside the copy.

    Besides size and modification time these are the inode and the time of its last change, which no program can set.
    """

    def __init__(self, target: Path) -> None:
        self._target, self._path = target, _verified_file(target)
        with suppress(FileNotFoundError, ValueError):  # a process may have been killed during a write
            self._known = json.loads(self._path.read_text())
            return
        self._known = {}

    def is_unchanged(self, name: str, digest: str) -> bool:
        """Return whether the file exists and is unchanged since its digest was verified."""
        with suppress(FileNotFoundError):
            return bool(self._known.get(name) == [digest, *self._stat(name)])
        return False

    def add(self, name: str, digest: str) -> None:
        """Record that the file has this digest."""
        self._known[name] = [digest, *self._stat(name)]
        with replacing(self._path) as partial:
            partial.write_text(json.dumps(self._known))

    def _stat(self, name: str) -> tuple[int, int, int, int]:
        found = (self._target / name).stat()
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
