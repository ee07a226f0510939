"""Rows of the files that data sets are published in: parquet, JSON, JSON lines, CSV, text, and tars of webdataset."""

import csv
import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core.data.json_lists import Unreadable, parse, read_list
from srpo_core.data.records import LeftOut, Record
from srpo_core.data.rules import Findings
from srpo_core.errors import DataError

ROWS_AT_ONCE: Final = 1024
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
)
TEXT: Final = "text"  # the column of a file that has no names of columns
_LONGEST_CELL: Final = 1 << 20


@dataclass(frozen=True)
class Table:
    """A file of rows. name: its path below the data set; embedded: the columns whose images are in the file itself.

    read: yields a row for each record, by column, or what is there instead of a row.
    """

    path: Path
    name: str
    columns: tuple[str, ...]
    embedded: frozenset[str]
    read: Callable[[Collection[str]], Iterator[Any]]

    def rows(self, columns: Collection[str], findings: Findings) -> Iterator[Record]:
        """Yield the rows with some of the columns, without all rows in memory; others are reported and left out.

        The cell of an image that is in the file itself is the name by which `TableImages` reads it.
        """
        file = str(self.path)
        for number, cells in enumerate(self.read(columns)):
            findings.count(file)
            row = Record(findings, file, number, cells)
            try:
                row.mapping()
            except LeftOut:
                continue
            yield row


def open_table(path: Path, name: str) -> Table:
    """Open a file by the suffix of its name.

    Raises:
        DataError: it cannot be read as what its name says, or has no row.
    """
    try:
        return _OPENERS[path.suffix](path, name)
    except (OSError, tarfile.TarError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> DataError:
    """Make the error for a file that cannot be read to its end."""
    return DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}; download it again")


def _require_unique(path: Path, columns: Sequence[str]) -> None:
    if doubled := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{path}: has the column {doubled[0]!r} twice: rename one of them")


def _open_parquet(path: Path, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    embedded = frozenset(field.name for field in schema if _holds_bytes(field.type))

    def read(columns: Collection[str]) -> Iterator[Mapping[str, Any]]:
        plain = [column for column in columns if column not in embedded]
        images = [column for column in columns if column in embedded]
        number = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=plain):
                    for cells in batch.to_pylist():
                        yield cells | {column: embedded_name(name, number, column) for column in images}
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error) from None

    _require_unique(path, schema.names)
    return Table(path, name, tuple(schema.names), embedded, read)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):  # the images of the library `datasets`
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def embedded_name(table: str, record: int, column: str) -> str:
    """Name an image in a parquet file so that the order of the names is that of the rows."""
    return f"{table}/{record:010d}.{column}"


def _open_json(path: Path, name: str) -> Table:
    return _of_records(path, name, lambda: (value for _, value, _ in read_list(path)))


def _open_json_lines(path: Path, name: str) -> Table:
    def values() -> Iterator[Any]:
        for number, line in enumerate(filter(str.strip, _lines(path))):
            try:
                yield parse(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}: record {number}: broken JSON at column {error.colno}: {error.msg}"
                ) from None

    return _of_records(path, name, values)


def _of_records(path: Path, name: str, values: Callable[[], Iterable[Any]]) -> Table:
    """Make a table of JSON values: objects, or texts, which have the only column `text`."""

    def read(_: Collection[str]) -> Iterator[Any]:
        for value in values():
            if isinstance(value, str):
                yield {TEXT: value}
            elif isinstance(value, dict | Unreadable):
                yield value
            else:
                kind = type(value).__name__
                yield Unreadable("broken_record", f"must be an object or a text, not {kind}")

    return _with_columns_of_first_row(path, name, read)


def _open_csv(path: Path, name: str) -> Table:
    delimiter = "\t" if path.suffix == ".tsv" else ","

    def read(_: Collection[str]) -> Iterator[Any]:
        csv.field_size_limit(_LONGEST_CELL)
        rows = csv.DictReader(_lines(path), delimiter=delimiter, strict=True)
        number = 0
        try:
            _require_unique(path, rows.fieldnames or ())
            for number, cells in enumerate(rows):  # noqa: B007  # the number of the record before a fault
                if None in cells or None in cells.values():
                    yield Unreadable(
                        "broken_record", "has another number of cells than the first line has columns"
                    )
                else:
                    yield cells
        except csv.Error as error:
            raise DataError(f"{path}: record {number}: broken CSV: {error}") from None

    return _with_columns_of_first_row(path, name, read)


def _open_text(path: Path, name: str) -> Table:
    def read(_: Collection[str]) -> Iterator[Mapping[str, Any]]:
        for line in _lines(path):
            if line.strip():
                yield {TEXT: line.rstrip("\r\n")}

    return _with_columns_of_first_row(path, name, read)


def _open_tar(path: Path, name: str) -> Table:
    """Make a table of a webdataset: members of the same name up to its first dot are a row, their suffixes its columns."""

    def read(_: Collection[str]) -> Iterator[Mapping[str, Any]]:
        try:
            with tarfile.open(path, "r:") as archive:
                members = (one for one in archive if one.isfile() and not is_hidden(one.name))
                for _key, own in groupby(members, key=lambda one: _split_key(one.name)[0]):
                    cells: dict[str, Any] = {}
                    for member in own:
                        cells |= _cells_of_member(archive, member, f"{name}/{member.name.removeprefix('./')}")
                    yield cells
        except (tarfile.TarError, OSError) as error:
            raise damaged(path, error) from None

    table = _with_columns_of_first_row(path, name, read)
    (first,) = islice(table.read(()), 1)
    images = {column for column in table.columns if str(first[column]).startswith(f"{name}/")}
    return Table(path, name, table.columns, frozenset(images), read)


def _cells_of_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> dict[str, Any]:
    column = _split_key(member.name)[1]
    last = column.rpartition(".")[2]
    if f".{last.split('_')[0].lower()}" in IMAGE_SUFFIXES:
        return {column: name}
    if member.size > _LONGEST_CELL:
        raise DataError(f"{archive.name!s}: member {member.name}: a text of {member.size} bytes is too long")
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    try:
        text = content.decode("utf-8-sig")
        if last != "json":
            return {column: text.strip()}
        value = parse(text)
    except ValueError as error:
        raise DataError(f"{archive.name!s}: member {member.name}: not readable as {last}: {error}") from None
    if isinstance(value, Unreadable):
        raise DataError(f"{archive.name!s}: member {member.name}: {value.detail}")
    return value if isinstance(value, dict) else {column: value}


def _split_key(name: str) -> tuple[str, str]:
    directory, file = posixpath.split(name)
    stem, _, column = file.partition(".")
    return posixpath.join(directory, stem), column


def is_hidden(name: str) -> bool:
    """Whether a part of a path starts with a dot, as those of caches and of macOS do (`._x.jpg`, `.DS_Store`)."""
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _with_columns_of_first_row(
    path: Path, name: str, read: Callable[[Collection[str]], Iterator[Any]]
) -> Table:
    first = next((row for row in read(()) if isinstance(row, Mapping)), None)
    if first is None:
        raise DataError(f"{path}: has no record")
    return Table(path, name, tuple(first), frozenset(), read)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start} of a block") from None


_OPENERS: Final = MappingProxyType[str, Callable[[Path, str], Table]](
    {
        ".parquet": _open_parquet,
        ".json": _open_json,
        ".jsonl": _open_json_lines,
        ".csv": _open_csv,
        ".tsv": _open_csv,
        ".txt": _open_text,
        ".tar": _open_tar,
    }
)
SUFFIXES: Final = frozenset(_OPENERS)
