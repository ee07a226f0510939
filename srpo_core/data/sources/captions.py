"""The format `images`: images with captions, for training that starts from real images.

Either a table with the columns of an image and its caption, as `metadata.jsonl` of the hub's image folders, or a
directory or a tar in which the caption of `x.jpg` is in `x.txt`.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from srpo_core.config import IngestSettings
from srpo_core.data.images import DirectoryImages, ImageSource, TarImages
from srpo_core.data.json_lists import Unreadable
from srpo_core.data.rules import Findings
from srpo_core.data.sources.beside import CAPTION, caption_of, images_among
from srpo_core.data.sources.layouts import CAPTIONS, require_columns
from srpo_core.data.sources.packing import copy_tables
from srpo_core.data.sources.rows import SUFFIXES, Table, is_hidden, visible_files
from srpo_core.data.sources.source import Source, SourceFormat
from srpo_core.data.sources.table_images import PACKED
from srpo_core.data.sources.table_source import (
    HELD_OUT,
    OpenTable,
    TableSource,
    chosen_splits,
    open_tables,
)
from srpo_core.errors import DataError

_ABOUT: Final = frozenset({"readme", "license", "licence", "notice"})  # texts of these names are no captions
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Folder:
    """Images that are files in a directory, or in its archive.

    images: their names. alone: captions without an image. Both are sorted, and relative to the directory.
    """

    where: Path
    archive: Path | None
    images: Sequence[str]
    alone: Sequence[str]


def _open(where: Path, ingest: IngestSettings, findings: Findings) -> Source:
    folder = None if where.is_file() else _find_folder(where)
    if folder is None:
        return open_tables(where, ingest, CAPTIONS, findings)
    if not folder.images:
        raise DataError(
            f"{where}: has no image with a caption: give x.txt beside x.jpg, or metadata.jsonl (docs/data.md)"
        )
    found: dict[str, list[OpenTable]] = {}
    for split in _splits_to_read(folder):
        images = [name for name in folder.images if split in (None, _split_of(name))]
        alone = [name for name in folder.alone if split in (None, _split_of(name))]
        own = _Folder(folder.where, folder.archive, images, alone)
        found[split or ""] = [partial(_folder_table, own)]
    return TableSource(where, ingest, CAPTIONS, found, findings)


def _find_folder(where: Path) -> _Folder | None:
    """Return the images and captions that are files, or None if the captions are in tables."""
    packed = where / PACKED
    archive = packed if packed.is_file() else None
    loose = [path.relative_to(where).as_posix() for path in visible_files(where) if path != packed]
    names = loose
    if archive is not None:
        with archive.open("rb") as file:
            names = [name for name in TarImages(archive, file, "").names() if not is_hidden(name)]
    images = images_among(names)
    captions = {caption_of(name) for name in images}
    if not captions & set(names) and any(
        PurePosixPath(name).suffix in SUFFIXES - {CAPTION} for name in loose
    ):
        return None
    if archive is not None and (beside := images_among(loose)):
        raise DataError(
            f"{where}: has {len(beside)} images beside {PACKED}, first {beside[0]}: pack all of them, or unpack {PACKED}"
        )
    others = [name for name in names if name not in captions.union(images)]
    beside_images = {PurePosixPath(name).parent for name in images}
    alone = [name for name in others if _is_caption(PurePosixPath(name), beside_images)]
    if unread := sorted(set(others).difference(alone)):
        _log.warning(
            "%s: %d files are neither images nor captions and are not read, first %s",
            where,
            len(unread),
            unread[0],
        )
    return _Folder(where, archive, images, alone)


def _is_caption(path: PurePosixPath, beside_images: Collection[PurePosixPath]) -> bool:
    """Whether a text that belongs to no image is the caption of one that lacks: it lies beside images."""
    return path.suffix == CAPTION and path.stem.lower() not in _ABOUT and path.parent in beside_images


def _split_of(name: str) -> str:
    """Return the first directory in a name that is a split; the names of images say nothing about splits."""
    directories = PurePosixPath(name).parts[:-1]
    return next((part for part in directories if part == "train" or part in HELD_OUT), "")


def _splits_to_read(folder: _Folder) -> list[str | None]:
    """Return the splits that are read, None for all images; images of others are counted in a line."""
    splits = [_split_of(name) for name in folder.images]
    if set(splits) <= {"", "train"}:  # nothing is held out, so no image belongs to another split
        return [None]
    train, test = chosen_splits(splits)
    for name in sorted(set(splits) - {train, test}):
        outside = f"in directories {name}" if name else "outside of the directories of splits"
        _log.warning("%s: %d images %s are not read", folder.where, splits.count(name), outside)
    return [train] if test is None else [train, test]


def _folder_table(folder: _Folder) -> Table:
    """Make a table of images and their captions; its file is the directory or archive."""

    def read(_: Collection[str]) -> Iterator[Any]:
        with _stored(folder) as stored:
            for name in folder.images:
                yield _read_caption(stored, name)
        for name in folder.alone:
            yield Unreadable("broken_record", f"caption {name!r} has no image beside it that is read")

    return Table(folder.archive or folder.where, "", ("image", "text"), frozenset({"image"}), read)


@contextmanager
def _stored(folder: _Folder) -> Iterator[ImageSource]:
    if folder.archive is None:
        yield DirectoryImages(folder.where)
        return
    with folder.archive.open("rb") as file:
        yield TarImages(folder.archive, file, "")


def _read_caption(stored: ImageSource, image: str) -> Any:
    caption = caption_of(image)
    if caption not in stored:
        return Unreadable("broken_record", f"image {image!r} has no caption {CAPTION} beside it")
    try:
        return {"image": image, "text": stored.read(caption).decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        return Unreadable("broken_record", f"caption {caption!r} is not UTF-8 at byte {error.start}")


IMAGES_FORMAT: Final = SourceFormat(
    open=_open,
    collect=partial(copy_tables, with_images=True),
    check_columns=partial(require_columns, CAPTIONS),
    has_pairs=False,
    has_images=True,
    layout="a directory of images with captions (x.jpg and x.txt, or metadata.jsonl), or tables of both",
)
