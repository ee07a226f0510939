"""Files that lie beside the tables of a data set: images, their captions, and what cells name."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from srpo_core.data.decoding import IMAGE_SUFFIXES
from srpo_core.data.image_names import plain_name
from srpo_core.data.json_lists import Unreadable
from srpo_core.data.sources.rows import SUFFIXES, Table, open_table
from srpo_core.data.sources.table_source import find_tables
from srpo_core.errors import DataError

CAPTION: Final = ".txt"


def images_among(names: Sequence[str]) -> list[str]:
    """Return the files that are images by their suffix, or have no suffix and a caption of their name."""
    known = set(names)
    return [
        name
        for name in names
        if (suffix := PurePosixPath(name).suffix).lower() in IMAGE_SUFFIXES
        or (not suffix and caption_of(name) in known)
    ]


def caption_of(image: str) -> str:
    """Return the name of an image's caption."""
    return str(PurePosixPath(image).with_suffix(CAPTION))


def named_files(source: Path) -> set[Path]:
    """Return the files that cells of the tables in a source name, as images are: by paths below the table's directory.

    A file that is no table names none; the check of what was copied says what is wrong with it.
    """
    root = source if source.is_dir() else source.parent
    named: set[Path] = set()
    try:
        tables = find_tables(source, SUFFIXES - {CAPTION})
    except DataError:
        return named
    for path in tables:
        try:
            named.update(_named_by(open_table(path, path.relative_to(root).as_posix())))
        except DataError:
            continue
    return named


def _named_by(table: Table) -> Iterator[Path]:
    directory = table.path.parent
    plain = [column for column in table.columns if column not in table.embedded]
    for row in table.read(plain):
        if isinstance(row, Unreadable):
            continue
        for cell in row.values():
            # it is False for a text that cannot be a path
            if isinstance(cell, str) and cell and os.path.isfile(f"{directory}/{cell}"):  # noqa: PTH113
                try:
                    yield directory / plain_name(cell, "")
                except ValueError:
                    continue
