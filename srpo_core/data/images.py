"""The images of a split, in a directory (`train/`) or in an archive (`train.tar`, `train.tar.gz`).

HPDv2's train.tar.gz has 31 GB, so images are read one by one and never all in memory.
"""

import gzip
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, Protocol

from srpo_core import artifacts
from srpo_core.data.archives import tar_members
from srpo_core.data.image_names import is_metadata, plain_name
from srpo_core.errors import DataError

MOST_BYTES: Final = 1 << 30  # of one image file; more is no image, and would fill the memory
# images hardly shrink in an archive; zeros shrink a thousandfold
MOST_UNPACKED: Final = 100
ALWAYS_UNPACKED: Final = 4 << 30
_COPIED_AT_ONCE: Final = 1 << 20


class ImageSource(Protocol):
    """Access images by name."""

    where: Path

    def __contains__(self, name: str) -> bool:
        """Whether there is an image with this name."""
        ...

    def read(self, name: str) -> bytes:
        """Read the stored bytes of one image."""
        ...


class DirectoryImages:
    """Read images from the files of a directory.

    An archive that was unpacked in the directory may have put them into a second one of the same name (`train/train/`).
    """

    def __init__(self, where: Path) -> None:
        self.where = where

    def __contains__(self, name: str) -> bool:
        """Whether the directory contains a file with this name."""
        return self._find(name) is not None

    def read(self, name: str) -> bytes:
        """Read the bytes of one file."""
        path = self._find(name)
        try:
            if path is None:
                raise DataError(f"{self.where}: image {name!r} is not there any more: start again")
            if path.stat().st_size > MOST_BYTES:
                _refuse_size(self.where, name, path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}: image {name!r} cannot be read: {error.strerror}") from None

    def _find(self, name: str) -> Path | None:
        """Find the file of an image, or nothing.

        Raises:
            DataError: there are two, or the directory cannot be read.
        """
        if is_metadata(name):
            return None
        try:
            paths = (self.where / name, self.where / self.where.name / name)
            found = [path for path in paths if path.is_file()]
        except OSError as error:
            raise DataError(f"{self.where}: image {name!r} cannot be looked up: {error.strerror}") from None
        if len(found) > 1:
            raise DataError(
                f"{self.where}: {found[0]} and {found[1]} are both image {name!r}: remove one of them"
            )
        return found[0] if found else None


class TarImages:
    """Read images from the members of an uncompressed tar; one pass records the offset of each.

    The names of members may start with the split's directory (`train/0001.jpg`) or not (`0001.jpg`). A link within the
    archive is the file that it points to; files in which macOS keeps metadata (`._0001.jpg`) are no images.

    Raises:
        DataError: the file is not a tar, is truncated, has two members with the same name, or has a member that cannot be
            an image of the split: a sparse file, an absolute name or one with "..", a link to nothing.
    """

    def __init__(self, where: Path, file: BinaryIO, folder: str) -> None:
        self.where, self._file, self._folder = where, file, folder
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        for member in tar_members(where, file):
            self._add(member)
        for name in self._links:
            self._places[name] = self._places[self._target(name)]

    def _add(self, member: tarfile.TarInfo) -> None:
        if member.isdir() or is_metadata(member.name):
            return
        name = self._plain(member.name)
        if name in self._places or name in self._links:
            raise DataError(f"{self.where}: two members have the name {name!r}: names must be unique")
        if member.sparse is not None:
            raise DataError(
                f"{self.where}: member {name!r} is a sparse file: pack the images without --sparse"
            )
        if member.islnk():
            self._links[name] = self._plain(member.linkname)
        elif member.issym():
            target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
            self._links[name] = self._plain(target)
        elif member.isfile():
            self._places[name] = (member.offset_data, member.size)

    def _plain(self, name: str) -> str:
        try:
            return plain_name(name, self._folder)
        except ValueError as error:
            raise DataError(
                f"{self.where}: the member or link {error}: pack the images by relative names"
            ) from None

    def _target(self, name: str) -> str:
        """Return the name of the file that a link points to, over other links."""
        passed = [name]
        while (target := self._links.get(passed[-1])) is not None:
            if target in passed or (target not in self._links and target not in self._places):
                raise DataError(
                    f"{self.where}: member {name!r} is a link to {target!r}, which is no file of the archive: "
                    "pack the file itself (tar --dereference)"
                )
            passed.append(target)
        return passed[-1]

    def __contains__(self, name: str) -> bool:
        """Whether the archive contains a file with this name."""
        return name in self._places

    def names(self) -> list[str]:
        """Return the names of all files and links, sorted."""
        return sorted(self._places)

    def read(self, name: str) -> bytes:
        """Read the bytes of one member."""
        if name not in self._places:
            raise DataError(f"{self.where}: has no image {name!r}")
        offset, size = self._places[name]
        if size > MOST_BYTES:
            _refuse_size(self.where, name, size)
        return os.pread(self._file.fileno(), size, offset)


def find_images(source: Path, split: str) -> Path:
    """Find the directory or archive in `source` that contains the images of `split`.

    Raises:
        DataError: there is none, or more than one.
    """
    forms = [source / split, source / f"{split}.tar", source / f"{split}.tar.gz"]
    found = [form for form in forms if form.exists()]
    if len(found) != 1:
        problem = " and ".join(map(str, found)) if found else "none"
        raise DataError(
            f"{source}: the images of {split!r} must be in exactly one of {split}/, {split}.tar, "
            f"{split}.tar.gz, found {problem}"
        )
    return found[0]


@contextmanager
def open_images(source: Path, split: str) -> Iterator[ImageSource]:
    """Open the images of `split` in `source`, whether they are in a directory or in an archive.

    A compressed archive is unpacked into an unnamed temporary file in `artifacts.home()`, because gzip has no random
    access. The file needs about as much space as the archive and is removed when the process ends.

    Raises:
        DataError: there is no directory or archive, or more than one, or it cannot be read.
    """
    where = find_images(source, split)
    if where.is_dir():
        yield DirectoryImages(where)
        return
    with _unpacked(where) if where.suffix == ".gz" else where.open("rb") as file:
        yield TarImages(where, file, split)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    home = artifacts.home()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home) as plain:
        try:
            with gzip.open(path, "rb") as packed:
                _copy_within_bounds(path, packed, plain)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: not a readable gzip archive: {error}") from None
        plain.seek(0, os.SEEK_SET)
        yield plain


def _copy_within_bounds(path: Path, packed: gzip.GzipFile, plain: BinaryIO) -> None:
    """Copy an archive; refuse one that would fill the disk.

    Raises:
        DataError: it has far more bytes than images can have, or more than are free.
    """
    copied, most = 0, max(ALWAYS_UNPACKED, MOST_UNPACKED * path.stat().st_size)
    while block := packed.read(_COPIED_AT_ONCE):
        copied += len(block)
        if copied > most:
            raise DataError(
                f"{path}: unpacked, it has more than {MOST_UNPACKED} times its size: it is no archive of images"
            )
        try:
            plain.write(block)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be unpacked into {artifacts.home()} ({error.strerror}) after {copied / 1e9:.1f} GB: "
                "free some space, or set SRPO_HOME"
            ) from None


def _refuse_size(where: Path, name: str, size: int) -> NoReturn:
    raise DataError(f"{where}: image {name!r} has {size:,} bytes: at most {MOST_BYTES:,} are read")
