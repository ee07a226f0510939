"""Rows of a parquet file, some at a time, with names in place of the images."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.data.json_lists import Unreadable

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE: Final = 1024


def columns_of_bytes(schema: "pa.Schema") -> list[str]:
    """List the columns that hold bytes, alone or as the images of the library `datasets`."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def read_rows(path: Path, name: str, schema: "pa.Schema", columns: Collection[str]) -> Iterator[Any]:
    """Yield rows by column, or `Unreadable`; a column of bytes that is not in `columns` has the names of its images.

    name: of the table below the data set.

    Raises:
        ArrowException, OSError: the file is damaged.
    """
    import pyarrow.parquet as pq

    images = [column for column in columns_of_bytes(schema) if column not in columns]
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
            for cells in _rows_of(batch):
                if isinstance(cells, dict):
                    cells |= {column: embedded_name(name, number, column) for column in images}
                yield cells
                number += 1


def embedded_name(table: str, record: int, column: str) -> str:
    """Name an image in a parquet file so that the order of the names is that of the rows."""
    return f"{table}/{record:010d}.{column}"


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _rows_of(batch: "pa.RecordBatch") -> Iterator[Any]:
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):  # a text that is not UTF-8, or a time beyond those of Python
        rows = [_row_of(batch.slice(number, 1)) for number in range(len(batch))]
    for cells in rows:
        yield _with_texts(cells) if isinstance(cells, dict) else cells


def _row_of(batch: "pa.RecordBatch") -> Any:
    try:
        (cells,) = batch.to_pylist()
    except UnicodeDecodeError as error:
        return _not_utf_8(error)
    except (ValueError, OverflowError) as error:
        return Unreadable("broken_record", f"has a value that cannot be read: {error}")
    return cells


def _with_texts(cells: dict[str, Any]) -> dict[str, Any] | Unreadable:
    """Return a row whose bytes are texts."""
    try:
        for column, value in cells.items():
            if isinstance(value, bytes):
                cells[column] = value.decode()
    except UnicodeDecodeError as error:
        return _not_utf_8(error)
    return cells


def _not_utf_8(error: UnicodeDecodeError) -> Unreadable:
    text = error.object.decode(errors="backslashreplace")
    return Unreadable("broken_record", f"has a text that is not UTF-8 at byte {error.start}", text)
