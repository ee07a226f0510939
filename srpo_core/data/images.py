"""The images of a split, in a directory (`train/`) or in an archive (`train.tar`, `train.tar.gz`).

HPDv2's train.tar.gz has 31 GB, so images are read one by one and never all in memory.
"""

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from srpo_core import artifacts
from srpo_core.data.choices import Place
from srpo_core.errors import DataError


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
    """Read images from the files of a directory."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __contains__(self, name: str) -> bool:
        """Whether the directory contains a file with this name."""
        return (self.where / name).is_file()

    def read(self, name: str) -> bytes:
        """Read the bytes of one file."""
        return (self.where / name).read_bytes()


class TarImages:
    """Read images from the members of an uncompressed tar; one pass records the offset of each.

    The names of members may start with the split's directory (`train/0001.jpg`) or not (`0001.jpg`).

    Raises:
        DataError: the file is not a tar, is truncated, or has two members with the same name.
    """

    def __init__(self, where: Path, file: BinaryIO, folder: str) -> None:
        self.where, self._file = where, file
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._add(member, folder)
        except tarfile.TarError as error:
            raise DataError(f"{where}: not a readable tar archive: {error}") from None

    def _add(self, member: tarfile.TarInfo, folder: str) -> None:
        name = member.name.removeprefix("./").removeprefix(f"{folder}/")
        if name in self._places:
            raise DataError(f"{self.where}: two members have the name {name!r}: names must be unique")
        self._places[name] = (member.offset_data, member.size)

    def __contains__(self, name: str) -> bool:
        """Whether the archive contains a file with this name."""
        return name in self._places

    def read(self, name: str) -> bytes:
        """Read the bytes of one member."""
        offset, size = self._places[name]
        self._file.seek(offset)
        return self._file.read(size)


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


def require_images(images: ImageSource, used: Mapping[str, Place]) -> None:
    """Require an image for every name in `used`: from a name to the first record that uses it."""
    missing = [name for name in used if name not in images]
    if missing:
        file, record = used[missing[0]]
        raise DataError(
            f"{file}: record {record}: image {missing[0]!r} is not in {images.where} "
            f"({len(missing)} of {len(used)} images are missing)"
        )


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    home = artifacts.home()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home) as plain:
        try:
            with gzip.open(path, "rb") as packed:
                shutil.copyfileobj(packed, plain, 1 << 20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: not a readable gzip archive: {error}") from None
        plain.seek(0, os.SEEK_SET)
        yield plain
