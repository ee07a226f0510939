"""Files by URI: a directory of this machine, or object storage that every worker of a cluster reaches.

`SRPO_SHARED` names where a training run keeps what its workers read and write: a path, `file://…` or
`s3://bucket/prefix` (credentials and endpoint as boto3 finds them). Without it they share this machine's disk.
"""

import fcntl
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

from srpo_core.artifacts import replacing, sha256
from srpo_core.errors import ArtifactError, ConfigError

CHUNK = 8 << 20
OLD_VARIABLE = "SRPO_STORAGE"
COMPLETE = "complete"  # written when all that is shared is there, removed before the first of it goes


@dataclass(frozen=True)
class Location:
    """A file or directory by its URI; a relative path is one of the directory in which it is first named."""

    uri: str

    @classmethod
    def of(cls, where: str | Path) -> "Location":
        """The location of a path or URI, absolute.

        Raises:
            ConfigError: no file system of this kind is known.
        """
        text = str(where)
        if "://" not in text:
            return cls(str(Path(text).absolute()))
        known = ("file", "s3", "memory")
        if (scheme := text.partition("://")[0]) not in known:
            raise ConfigError(f"{text}: no storage of kind {scheme!r}: known are a path, file:// and s3://")
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
        """The path, if it is one of a file system that is mounted here."""
        if "://" not in self.uri:
            return Path(self.uri)
        return Path(self.uri.removeprefix("file://")) if self.uri.startswith("file://") else None

    def exists(self) -> bool:
        """Whether there is such a file, or anything below such a directory."""
        fs, path = self._fs()
        return bool(fs.exists(path))

    def names(self) -> list[str]:
        """Names of what lies directly below, sorted; empty when there is nothing."""
        fs, path = self._fs()
        if not fs.exists(path):
            return []
        return sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))

    def files(self) -> list[str]:
        """Relative paths of all files below, sorted."""
        fs, path = self._fs()
        found = fs.find(path) if fs.exists(path) else []
        root = fs._strip_protocol(path).rstrip("/") + "/"
        return sorted(fs._strip_protocol(entry).removeprefix(root) for entry in found)

    def read_text(self) -> str:
        """The contents of a text file. Raises `FileNotFoundError`."""
        fs, path = self._fs()
        return bytes(fs.cat_file(path)).decode()

    def write(self, content: bytes) -> None:
        """Write a file: whole or not at all."""
        if self.path is None:
            fs, path = self._fs()
            fs.pipe_file(path, content)  # an object appears when it is complete
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        partial.write_bytes(content)
        partial.replace(self.path)

    def append(self, name: str, line: str) -> None:
        """Add a line to the file `name` below, which nobody else writes to."""
        file = self / name
        if file.path is None:
            before = file.read_text() if file.exists() else ""
            file.write((before + line + "\n").encode())
            return
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with file.path.open("a", encoding="utf-8") as opened:
            opened.write(line + "\n")

    def sha256(self) -> str:
        """SHA-256 of a file, as 64 hex digits. Raises `FileNotFoundError`."""
        fs, path = self._fs()
        digest = hashlib.sha256()
        with fs.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def delete(self) -> None:
        """Remove a file, or a directory and all below; nothing happens when it is not there."""
        fs, path = self._fs()
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def upload(self, source: Path) -> None:
        """Copy a file, or the files below a directory, to this place."""
        fs, path = self._fs()
        for file in [source] if source.is_file() else (p for p in sorted(source.rglob("*")) if p.is_file()):
            target = path if source.is_file() else f"{path}/{file.relative_to(source)}"
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(file), target)

    def download(self, target: Path) -> None:
        """Copy this file to a path: whole or not at all. Raises `FileNotFoundError`."""
        fs, path = self._fs()
        with replacing(target) as partial:
            fs.get_file(path, str(partial))

    def _fs(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        # another process writes what this one lists
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
    """Files, and all below directories, by the name under which workers elsewhere look for them: their own.

    Raises:
        ConfigError: a path is absolute, so that no worker elsewhere could find it.
    """
    files: dict[str, Path] = {}
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{path}: with SRPO_SHARED a path must be relative and lie below the project")
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        files |= {str(file): file for file in found}
    return files


def share(files: Mapping[str, Path], place: Location) -> dict[str, str]:
    """Copy files to a place, each under its name, if that has not been done; returns their digests by name."""
    if not (place / COMPLETE).exists():
        for name, file in files.items():
            (place / name).upload(file)
        (place / COMPLETE).write(b"")
    return {name: sha256(file) for name, file in files.items()}


@contextmanager
def local_copy(location: Location, digests: Mapping[str, str]) -> Iterator[Path]:
    """A directory on this machine with the files `digests` below `location`: itself if mounted here, else a copy.

    Processes of one machine share the copy, which goes with the last of them.

    Raises:
        ArtifactError: a file is missing there, or does not have its digest.
    """
    if location.path is not None:
        yield location.path
        return
    name = hashlib.sha256(location.uri.encode()).hexdigest()[:12]
    root = Path(tempfile.gettempdir()) / f"srpo-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = root / name
    # readers share the copy, whoever comes first fetches it, and the last one clears it away
    with (root / f"{name}.readers").open("a+") as readers, (root / f"{name}.fetching").open("a+") as fetching:
        fcntl.flock(readers, fcntl.LOCK_SH)
        try:
            fcntl.flock(fetching, fcntl.LOCK_EX)
            _download(location, target, digests)
            fcntl.flock(fetching, fcntl.LOCK_UN)
            yield target
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(readers, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(target, ignore_errors=True)
                _seen_file(target).unlink(missing_ok=True)


def _download(location: Location, target: Path, digests: Mapping[str, str]) -> None:
    """Copy files below `location`; those that are there already, as they should be, stay.

    What a process of this machine has found to be so is not read again by the next: of FLUX.1-dev that is 47 GB.
    """
    fs, path = location._fs()
    seen = _Seen(target)
    for name, digest in digests.items():
        file = target / name
        if seen.as_it_is(name, digest):
            continue
        if file.is_file() and sha256(file) == digest:
            seen.note(name, digest)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.get_file(f"{path}/{name}", str(file))
        except FileNotFoundError:
            raise ArtifactError(f"{location}/{name} is missing: see SRPO_SHARED") from None
        if sha256(file) != digest:
            raise ArtifactError(f"{location}/{name} does not have its digest: was it written to?")
        seen.note(name, digest)


def _seen_file(target: Path) -> Path:
    """Where processes tell each other what they have held to its digest in a copy."""
    return target.with_name(f"{target.name}.seen")


class _Seen:
    """Files of a copy that had their digest, by size and time of their last change; kept beside the copy."""

    def __init__(self, target: Path) -> None:
        self._target, self._path = target, _seen_file(target)
        with suppress(FileNotFoundError, ValueError):  # of a process that was killed while it wrote
            self._known = json.loads(self._path.read_text())
            return
        self._known = {}

    def as_it_is(self, name: str, digest: str) -> bool:
        """Whether the file is there, unchanged since it was found to have this digest."""
        with suppress(FileNotFoundError):
            return bool(self._known.get(name) == [digest, *self._stat(name)])
        return False

    def note(self, name: str, digest: str) -> None:
        """Remember that the file has this digest."""
        self._known[name] = [digest, *self._stat(name)]
        with replacing(self._path) as partial:
            partial.write_text(json.dumps(self._known))

    def _stat(self, name: str) -> tuple[int, int]:
        found = (self._target / name).stat()
        return found.st_size, found.st_mtime_ns
