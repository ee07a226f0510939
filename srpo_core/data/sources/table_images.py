"""Images that are in the files of a data set: in parquet files, in tars, or beside them."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from srpo_core.data.images import DirectoryImages, TarImages
from srpo_core.data.sources.rows import damaged
from srpo_core.errors import DataError

PACKED: Final = "images.tar"  # in a data version: the images that lie beside the tables
_IN_FILE: Final = re.compile(r"\.(?:parquet|tar)(?=/.)")
_IMAGES_AT_ONCE: Final = 16


def is_within_table(name: str) -> bool:
    """Whether an image is in a parquet file or a tar of webdataset, by the form of its name; see `TableImages`."""
    return _IN_FILE.search(name) is not None


@contextmanager
def open_table_images(where: Path) -> "Iterator[TableImages]":
    """Open the images of the data set in the directory `where`."""
    with ExitStack() as opened:
        yield TableImages(where, opened)


class TableImages:
    """Read images by name: `<file>.parquet/<row>.<column>`, `<file>.tar/<member>`, or a path in the directory.

    A path that is not a file is looked up in `images.tar`. Parquet files are read forward, a few images at a time, so
    read names in their order.
    """

    def __init__(self, where: Path, opened: ExitStack) -> None:
        self.where = where
        self._opened = opened
        self._directory = DirectoryImages(where)
        self._tars: dict[str, TarImages] = {}
        self._is_table: dict[str, bool] = {}
        self._cursor: _Cursor | None = None

    def __contains__(self, name: str) -> bool:
        """Whether there is an image with this name."""
        if place := self._place_in_table(name):
            file, member = place
            return file.endswith(".parquet") or member in self._tar(file)
        return name in self._directory or ((self.where / PACKED).is_file() and name in self._tar(PACKED))

    def read(self, name: str) -> bytes:
        """Read the stored bytes of one image."""
        if place := self._place_in_table(name):
            file, member = place
            if file.endswith(".tar"):
                return self._tar(file).read(member)
            record, _, column = member.partition(".")
            return self._embedded(file, int(record), column)
        return self._directory.read(name) if name in self._directory else self._tar(PACKED).read(name)

    def _place_in_table(self, name: str) -> tuple[str, str] | None:
        """Return the table with an image, and its name there; None if it is in none. Directories are named like tables, too."""
        for found in _IN_FILE.finditer(name):
            file = name[: found.end()]
            if file not in self._is_table:
                self._is_table[file] = (self.where / file).is_file()
            if self._is_table[file]:
                return file, name[found.end() + 1 :]
        return None

    def _tar(self, file: str) -> TarImages:
        if file not in self._tars:
            stream = self._opened.enter_context((self.where / file).open("rb"))
            self._tars[file] = TarImages(self.where / file, stream, "")
        return self._tars[file]

    def _embedded(self, file: str, record: int, column: str) -> bytes:
        import pyarrow as pa

        try:
            return self._read_embedded(file, record, column)
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.where / file, error) from None

    def _read_embedded(self, file: str, record: int, column: str) -> bytes:
        cursor = self._cursor
        columns = {column} if cursor is None or cursor.file != file else {*cursor.columns, column}
        if cursor is None or not cursor.can_read(file, record, column):
            self._cursor = cursor = _Cursor(file, self.where / file, columns, record)
        return cursor.read(record, column)


class _Cursor:
    """Read the images of one row group of a parquet file forward."""

    def __init__(self, file: str, path: Path, columns: set[str], record: int) -> None:
        import pyarrow.parquet as pq

        self.file, self.columns = file, columns
        opened = pq.ParquetFile(path, pre_buffer=False)
        sizes = [opened.metadata.row_group(index).num_rows for index in range(opened.num_row_groups)]
        ends = list(accumulate(sizes))
        group = bisect_right(ends, record)
        if group == len(ends):
            raise DataError(f"{path}: has no record {record}")
        self._start, self._end = ends[group] - sizes[group], ends[group]
        self._batches = opened.iter_batches(_IMAGES_AT_ONCE, row_groups=[group], columns=sorted(columns))
        self._batch: Any = next(self._batches)

    def can_read(self, file: str, record: int, column: str) -> bool:
        """Whether an image is in the columns of the row group, and not before the present batch."""
        return file == self.file and column in self.columns and self._start <= record < self._end

    def read(self, record: int, column: str) -> bytes:
        """Return an image, empty if the cell is; see `can_read`."""
        while record >= self._start + len(self._batch):
            self._start += len(self._batch)
            self._batch = next(self._batches)
        value = self._batch.column(column)[record - self._start].as_py()
        return bytes((value["bytes"] if isinstance(value, dict) else value) or b"")
