"""Rows of the files that data sets are published in: parquet, JSON, JSON lines, CSV, text, and tars of webdataset."""

import csv
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core.data.archives import ARCHIVE_DAMAGE, SHOWN_REASON, require_end
from srpo_core.data.decoding import IMAGE_SUFFIXES
from srpo_core.data.json_lists import Unreadable, parse, read_list
from srpo_core.data.records import LeftOut, Record
from srpo_core.data.rules import Findings, one_line
from srpo_core.data.sources.webdataset import LONGEST_CELL, any_kind, kind_of, read_sample, split_key
from srpo_core.errors import DataError

TEXT: Final = "text"  # the column of a file that has no names of columns
_ROWS_WITH_COLUMNS: Final = 100  # a bad first row may lack a column
_BLANK: Final = " \t\r\n"
_NOT_UTF_8: Final = re.compile("[\udc80-\udcff]")  # bytes that `surrogateescape` keeps; no UTF-8 becomes one


@dataclass(frozen=True)
class Table:
    """A file of rows. name: its path below the data set; embedded: the columns that can hold images in the file itself.

    read: yields a row for each record, by column, or what is there instead of a row, from the columns to read as values.
    """

    path: Path
    name: str
    columns: tuple[str, ...]
    embedded: frozenset[str]
    read: Callable[[Collection[str]], Iterator[Any]]

    def rows(self, columns: Collection[str], findings: Findings) -> Iterator[Record]:
        """Yield the rows with the values of some columns, without all rows in memory; bad ones are reported and left out.

        In the other columns of `embedded` a cell is the name by which `TableImages` reads the image.
        """
        file = str(self.path)
        for number, cells in enumerate(self.read(columns)):
            findings.count(file)
            row = Record(findings, file, number, cells, cells.text if isinstance(cells, Unreadable) else "")
            try:
                row.mapping()
            except LeftOut:
                continue
            yield row


def open_table(path: Path, name: str) -> Table:
    """Open a file by the suffix of its name.

    Raises:
        DataError: it cannot be read as what its name says, or has no row, or its name is no text.
    """
    if _NOT_UTF_8.search(name):
        raise DataError(f"{one_line(str(path))}: the name of the file is not UTF-8: rename it")
    try:
        return _OPENERS[path.suffix](path, name)
    except (OSError, tarfile.TarError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> DataError:
    """Make the error for a file that cannot be read to its end."""
    reason = " ".join(str(error).split())[:SHOWN_REASON]
    advice = "" if "download it again" in reason else "; download it again"
    return DataError(f"{path}: cannot be read: {reason}{advice}")


def _require_unique(path: Path, columns: Sequence[str]) -> None:
    if doubled := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{path}: has the column {doubled[0]!r} twice: rename one of them")


def _open_parquet(path: Path, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from srpo_core.data.sources import parquet_rows

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None

    def read(columns: Collection[str]) -> Iterator[Any]:
        try:
            yield from parquet_rows.read_rows(path, name, schema, columns)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error) from None

    _require_unique(path, schema.names)
    embedded = frozenset(parquet_rows.columns_of_bytes(schema))
    return Table(path, name, tuple(schema.names), embedded, read)


def _open_json(path: Path, name: str) -> Table:
    return _of_records(path, name, lambda: ((value, text) for _, value, text in read_list(path)))


def _open_json_lines(path: Path, name: str) -> Table:
    def values() -> Iterator[tuple[Any, str]]:
        for number, line in enumerate(one for one in _lines(path) if one.strip(_BLANK)):
            if problem := _not_utf_8([line]):
                yield problem, line
                continue
            try:
                value = parse(line)
            except json.JSONDecodeError as error:
                detail = f"broken JSON at column {error.colno}: {error.msg}"
                if not line.endswith(("\n", "\r")):
                    raise DataError(f"{path}: record {number}: {detail}, where the file ends") from None
                value = Unreadable("broken_record", detail)
            yield value, line

    return _of_records(path, name, values)


def _of_records(path: Path, name: str, values: Callable[[], Iterable[tuple[Any, str]]]) -> Table:
    """Make a table of JSON values and their texts: objects, or texts, which have the only column `text`."""

    def read(_: Collection[str]) -> Iterator[Any]:
        for value, text in values():
            if isinstance(value, str):
                yield {TEXT: value}
            elif isinstance(value, dict):
                yield value
            elif isinstance(value, Unreadable):
                yield replace(value, text=text)
            else:
                kind = type(value).__name__
                yield Unreadable("broken_record", f"must be an object or a text, not {kind}", text)

    return _with_columns_of_first_rows(path, name, read)


def _open_csv(path: Path, name: str) -> Table:
    delimiter = "\t" if path.suffix == ".tsv" else ","

    def read(_: Collection[str]) -> Iterator[Any]:
        csv.field_size_limit(LONGEST_CELL)
        rows = csv.DictReader(_lines(path), delimiter=delimiter, strict=True)
        number = 0
        try:
            if problem := _not_utf_8(rows.fieldnames or ()):
                raise DataError(f"{path}: the names of the columns: {problem.detail}")
            _require_unique(path, rows.fieldnames or ())
            for number, cells in enumerate(rows):  # noqa: B007  # the number of the record before a fault
                if None in cells or None in cells.values():
                    detail = "has another number of cells than the first line has columns"
                    yield Unreadable("broken_record", detail, json.dumps(cells))
                else:
                    yield _not_utf_8(cells.values()) or cells
        except csv.Error as error:
            raise DataError(f"{path}: record {number}: broken CSV: {error}") from None

    return _with_columns_of_first_rows(path, name, read)


def _open_text(path: Path, name: str) -> Table:
    def read(_: Collection[str]) -> Iterator[Any]:
        for line in _lines(path):
            if line.strip(_BLANK):
                yield _not_utf_8([line]) or {TEXT: line.rstrip("\r\n")}

    return _with_columns_of_first_rows(path, name, read)


def _open_tar(path: Path, name: str) -> Table:
    """Make a table of a webdataset: members of the same name up to its first dot are a row, their suffixes its columns."""

    def samples(_: Collection[str]) -> Iterator[Any]:
        try:
            with tarfile.open(path, "r:") as archive:
                members = (one for one in archive if _is_file(one) and not is_hidden(one.name))
                for _key, own in groupby(members, key=lambda one: split_key(one.name)[0]):
                    yield read_sample(archive, list(own), name, _is_image)
                require_end(archive, path)
        except ARCHIVE_DAMAGE as error:
            raise damaged(path, error) from None

    table = _with_columns_of_first_rows(path, name, samples)
    images = [column for column in table.columns if _is_image(column)]

    def read(columns: Collection[str]) -> Iterator[Any]:
        for cells in samples(columns):
            if isinstance(cells, dict):  # 3.png, where other rows have 3.jpg
                own = {any_kind(column): cells[column] for column in cells if _is_image(column)}
                others = {column: own[any_kind(column)] for column in images if any_kind(column) in own}
                yield others | cells
            else:
                yield cells

    return Table(path, name, table.columns, frozenset(images), read)


def _is_file(member: tarfile.TarInfo) -> bool:
    return member.isfile() or member.islnk() or member.issym()


def _is_image(column: str) -> bool:
    return f".{kind_of(column).lower()}" in IMAGE_SUFFIXES


def visible_files(directory: Path) -> list[Path]:
    """Return the files below a directory that are not hidden, sorted; of a file, itself."""
    if directory.is_file():
        return [directory]
    return [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not is_hidden(path.relative_to(directory).as_posix())
    ]


def is_hidden(name: str) -> bool:
    """Whether a part of a path starts with a dot, as those of caches and of macOS do (`._x.jpg`, `.DS_Store`)."""
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _with_columns_of_first_rows(
    path: Path, name: str, read: Callable[[Collection[str]], Iterator[Any]]
) -> Table:
    rows = list(islice(read(()), _ROWS_WITH_COLUMNS))
    columns = dict.fromkeys(column for row in rows if isinstance(row, Mapping) for column in row)
    if not columns:
        problem = next(
            (f"record 0: {row.detail}" for row in rows if isinstance(row, Unreadable)), "has no record"
        )
        raise DataError(f"{path}: {problem}")
    return Table(path, name, tuple(columns), frozenset(), read)


def _lines(path: Path) -> Iterator[str]:
    """Yield lines; bytes that are not UTF-8 become halves of surrogate pairs, see `_not_utf_8`."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from file


def _not_utf_8(texts: Iterable[str]) -> Unreadable | None:
    """Return what is wrong with the first of the texts that was not UTF-8."""
    for text in texts:
        if found := _NOT_UTF_8.search(text):
            start = len(text[: found.start()].encode())
            return Unreadable("broken_record", f"not UTF-8 at byte {start} of {one_line(text[:40])}", text)
    return None


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
