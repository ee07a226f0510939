"""The format `images`: images with captions, for training that starts from real images.

Either a table with the columns of an image and its caption, as `metadata.jsonl` of the hub's image folders, or a
directory or a tar in which the caption of `x.jpg` is in `x.txt`.
"""

import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from srpo_core.config import IngestSettings
from srpo_core.data.json_lists import Unreadable
from srpo_core.data.rules import Findings
from srpo_core.data.sources.layouts import CAPTIONS, require_columns
from srpo_core.data.sources.packing import copy_tables
from srpo_core.data.sources.rows import IMAGE_SUFFIXES, SUFFIXES, Table, is_hidden
from srpo_core.data.sources.source import Source, SourceFormat
from srpo_core.data.sources.table_images import PACKED
from srpo_core.data.sources.table_source import OpenTable, TableSource, open_tables, split_of
from srpo_core.errors import DataError

Texts = Callable[[], Mapping[str, str]]
_CAPTION: Final = ".txt"


def _open(where: Path, ingest: IngestSettings, findings: Findings) -> Source:
    members = _members(where)
    if members is None:
        return open_tables(where, ingest, CAPTIONS, findings)
    root, archive, names, read_texts = members
    found: dict[str, list[OpenTable]] = {}
    for split in dict.fromkeys(split_of(name) for name in names):
        own = [name for name in names if split_of(name) == split]
        found[split] = [partial(_folder_table, archive or root, own, read_texts)]
    return TableSource(root, ingest, CAPTIONS, found, findings)


def _members(where: Path) -> tuple[Path, Path | None, list[str], Texts] | None:
    """Return directory, archive, names and texts of images that are files, or None if their captions are in tables.

    Names are relative to the directory; a file without a caption or image of its own is among them, too.
    """
    if where.is_file():
        return None
    packed = where / PACKED
    paths = [
        path for path in where.rglob("*") if path.is_file() and not is_hidden(str(path.relative_to(where)))
    ]
    with_tables = any(path.suffix in SUFFIXES - {_CAPTION} and path != packed for path in paths)
    archive = packed if packed.is_file() else None
    if archive is None:
        names = sorted(path.relative_to(where).as_posix() for path in paths)
        texts: Texts = partial(_texts_of_directory, where, names)
    else:
        names, texts = _names_of_tar(archive), partial(_texts_of_tar, archive)
    return None if with_tables and not _has_captions(names) else (where, archive, names, texts)


def _names_of_tar(packed: Path) -> list[str]:
    with tarfile.open(packed, "r:") as archive:
        return sorted(one.name for one in archive if one.isfile() and not is_hidden(one.name))


def _has_captions(names: Collection[str]) -> bool:
    """Whether an image has a text of its name, so that other files beside are no tables of captions."""
    known = set(names)
    return any(_is_image(name) and str(PurePosixPath(name).with_suffix(_CAPTION)) in known for name in names)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _texts_of_tar(packed: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    with tarfile.open(packed, "r:") as archive:
        for member in archive:
            if member.name.endswith(_CAPTION) and (file := archive.extractfile(member)) is not None:
                texts[member.name] = _decoded(file.read(), f"{packed}: {member.name}")
    return texts


def _texts_of_directory(root: Path, names: Collection[str]) -> dict[str, str]:
    return {
        name: _decoded((root / name).read_bytes(), str(root / name))
        for name in names
        if name.endswith(_CAPTION)
    }


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}") from None


def _folder_table(where: Path, names: Sequence[str], read_texts: Texts) -> Table:
    """Make a table of images and their captions; its file is the directory or archive."""
    images = [name for name in names if _is_image(name)]
    if not images:
        raise DataError(
            f"{where}: has no image with a caption: give x.txt beside x.jpg, or metadata.jsonl (docs/data.md)"
        )

    def read(_: Collection[str]) -> Iterator[Any]:
        texts = dict(read_texts())
        for name in images:
            caption = texts.pop(str(PurePosixPath(name).with_suffix(_CAPTION)), None)
            if caption is None:
                yield Unreadable("broken_record", f"image {name!r} has no caption {_CAPTION} beside it")
            else:
                yield {"image": name, "text": caption}

    return Table(where, "", ("image", "text"), frozenset({"image"}), read)


IMAGES_FORMAT: Final = SourceFormat(
    open=_open,
    collect=partial(copy_tables, with_images=True),
    check_columns=partial(require_columns, CAPTIONS),
    has_pairs=False,
    has_images=True,
    layout="a directory of images with captions (x.jpg and x.txt, or metadata.jsonl), or tables of both",
)
