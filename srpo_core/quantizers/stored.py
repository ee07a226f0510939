"""Tensors in mapped files: where each is, and its weights in chunks, decoded if they are quantized."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from srpo_core.quantizers.chunks import CHUNK, ITEM_BYTES, Chunk
from srpo_core.quantizers.decoding import values_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scale:
    """The factors of a tensor's weights: one, or one for each `rows` × `columns` of them.

    values: float32 (number of groups of rows, number of groups of columns).
    """

    values: "Array"
    rows: int
    columns: int

    def of(self, first: int, size: int, row_items: int) -> "Array":
        """Return the factors of `size` weights from `first` on, in the order of the rows; one if it is the same for all."""
        import numpy as np

        if self.values.size == 1:
            return self.values.reshape(1)
        row, last = first // row_items, -(-(first + size) // row_items)
        groups: Array = self.values[np.arange(row, last) // self.rows]
        whole: Array = groups[:, np.arange(row_items) // self.columns].reshape(-1)
        return whole[first - row * row_items :][:size]


@dataclass(frozen=True)
class Stored:
    """Location of a tensor: the mapped file, its type there, its shape, its first byte, and how its type is laid out.

    block, block_bytes: weights and bytes of a block of the type; scale: factors of the weights, if there are any.
    """

    file: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int
    block: int
    block_bytes: int
    scale: Scale | None = None

    @property
    def row_items(self) -> int:
        """Weights per row."""
        return prod(self.shape[1:])

    @property
    def is_plain(self) -> bool:
        """Whether the weights are floats as they are stored."""
        return self.dtype in ITEM_BYTES and self.scale is None

    def chunks(self, first: int, count: int) -> Iterator[tuple[int, Chunk]]:
        """Yield `count` weights from `first` on, in chunks of at most `CHUNK`, each with the number of its first weight.

        Chunks begin at blocks, as rows do. The pages are released when all have been read.
        """
        for offset in range(0, count, CHUNK):
            yield first + offset, self._chunk(first + offset, min(CHUNK, count - offset))
        self._release_pages(self._place(first), self._place(first + count))

    def _place(self, item: int) -> int:
        return self.start + item // self.block * self.block_bytes

    def _chunk(self, first: int, size: int) -> Chunk:
        import numpy as np

        kind = _KINDS.get(self.dtype, "u1")
        encoded = np.frombuffer(
            self.file,
            kind,
            size // self.block * self.block_bytes // np.dtype(kind).itemsize,
            self._place(first),
        )
        if self.is_plain:
            return Chunk(encoded, self.dtype)
        values = (
            Chunk(encoded, self.dtype).float32 if self.dtype in ITEM_BYTES else values_of(encoded, self.dtype)
        )
        if self.scale is not None:
            values = values * self.scale.of(first, size, self.row_items)
        return Chunk(values, "F32")

    def _release_pages(self, start: int, stop: int) -> None:
        """Release whole pages that were read; they stay in the system's cache, but not in this process."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.file.madvise(mmap.MADV_DONTNEED, first, last - first)


_KINDS: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
