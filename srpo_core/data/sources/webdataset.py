"""A row of a webdataset: the members of a tar that have the same name up to its first dot."""

import json
import posixpath
import tarfile
from collections.abc import Callable, Sequence
from typing import Any, Final

from srpo_core.data.json_lists import Unreadable, parse
from srpo_core.data.rules import one_line

LONGEST_CELL: Final = 1 << 20  # bytes of a text


def split_key(name: str) -> tuple[str, str]:
    """Return the key of the row of a member, and its column: `a/1` and `0.jpg` of `a/1.0.jpg`."""
    directory, file = posixpath.split(name)
    stem, _, column = file.partition(".")
    return posixpath.join(directory, stem), column


def kind_of(column: str) -> str:
    """Return what a column says of its files: `jpg` of `0.jpg`, `jpg` and `jpg_0`."""
    return column.rpartition(".")[2].split("_")[0]


def any_kind(column: str) -> str:
    """Return the name of an image's column without the kind of file: `0.*` of `0.jpg` and `0.png`."""
    first, dot, last = column.rpartition(".")
    return f"{first}{dot}*{last.removeprefix(kind_of(column))}"


def read_sample(
    archive: tarfile.TarFile,
    members: Sequence[tarfile.TarInfo],
    name: str,
    is_image: Callable[[str], bool],
) -> dict[str, Any] | Unreadable:
    """Return the cells of a row; the cell of an image is its name below the data set.

    name: of the archive below the data set. is_image: whether a column holds images.
    """
    cells: dict[str, Any] = {}
    for member in members:
        column = split_key(member.name)[1]
        if is_image(column):
            own: Any = {column: f"{name}/{member.name.removeprefix('./')}"}
        else:
            own = _cells_of_text(archive, member, column)
        if isinstance(own, Unreadable):
            return own
        if doubled := sorted(cells.keys() & own):
            detail = f"{one_line(member.name)}: the row has {doubled[0]!r} twice"
            return Unreadable("doubled_key", detail, json.dumps(cells))
        cells |= own
    return cells


def _cells_of_text(
    archive: tarfile.TarFile, member: tarfile.TarInfo, column: str
) -> dict[str, Any] | Unreadable:
    def broken(detail: str, rule: str = "broken_record") -> Unreadable:
        return Unreadable(
            rule, f"{one_line(member.name)}: {detail}", content.decode(errors="backslashreplace")
        )

    content = b""
    try:
        file = archive.extractfile(member)
        content = b"" if file is None else file.read(LONGEST_CELL + 1)
    except (KeyError, RecursionError):
        return broken("is a link to nothing")
    if len(content) > LONGEST_CELL:
        return broken(f"has more than {LONGEST_CELL:,} bytes")
    try:
        text = content.decode("utf-8-sig")
        value = parse(text) if column.rpartition(".")[2] == "json" else text.strip()
    except UnicodeDecodeError as error:
        return broken(f"is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return broken(f"broken JSON at line {error.lineno}, column {error.colno}: {error.msg}")
    if isinstance(value, Unreadable):
        return broken(value.detail, value.rule)
    return value if isinstance(value, dict) else {column: value}
