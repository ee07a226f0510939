"""Read and check the header of a GGUF file, without its tensors.

The layout is in llama.cpp's ggml/include/gguf.h: magic, version, counts, keys with values, tensors, and the data of the
tensors at multiples of the alignment.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import DataError
from srpo_core.weights.safetensors_header import Located

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
ALIGNMENT_KEY: Final = "general.alignment"
DEFAULT_ALIGNMENT: Final = 32
MOST_DIMENSIONS: Final = 4
MOST_ENTRIES: Final = 100_000
_STRING, _ARRAY = 8, 9
# struct's letter for each type of a value with a fixed size
_FIXED: Final[Mapping[int, str]] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a GGUF file: its tensors by name, shapes in torch's order, and its values by key."""

    tensors: Mapping[str, Located]
    values: Mapping[str, Any]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Return tensors and values of a GGUF file.

    Raises:
        DataError: the file is cut, has bytes that belong to no tensor, or its header breaks a rule of the format.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data)
        try:
            if reader.take(len(MAGIC)) != MAGIC:
                raise DataError(
                    f"{path}: this is no GGUF file (it does not begin with GGUF): give a .gguf file"
                )
            version = reader.number("I")
            if version not in VERSIONS:
                known = " and ".join(map(str, VERSIONS))
                raise _broken(path, f"version {version}; known are {known}, little-endian")
            num_tensors, num_values = reader.number("Q"), reader.number("Q")
            if max(num_tensors, num_values) > MOST_ENTRIES:
                raise _broken(path, f"{num_tensors} tensors and {num_values} values")
            values = reader.pairs(num_values)
            infos = [reader.tensor() for _ in range(num_tensors)]
        except (struct.error, IndexError, OverflowError):
            raise DataError(f"{path}: cut at {size} bytes, within its header: fetch it again") from None
        begin = reader.place
    alignment = values.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise _broken(path, f"{ALIGNMENT_KEY} is {alignment}")
    return GGUFHeader(_placed(path, infos, -(-begin // alignment) * alignment, alignment), values)


class _Reader:
    """Reads one value after the other; raises `struct.error` or `IndexError` at the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data = path, data
        self.place = 0

    def take(self, length: int) -> bytes:
        if length > len(self._data) - self.place:
            raise IndexError
        self.place += length
        return self._data[self.place - length : self.place]

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _broken(self._path, "a text is not UTF-8") from None

    def pairs(self, count: int) -> dict[str, Any]:
        """Read keys and their values; of an array only the first eight items are returned."""
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self.text()
            if key in values:
                raise _broken(self._path, f"the key {key} is in its header twice")
            kind = self.number("I")
            values[key] = self._array(key) if kind == _ARRAY else self._value(key, kind)
        return values

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _FIXED:
            raise _broken(self._path, f"{key} has the unknown type {kind}")
        return self.number(_FIXED[kind])

    def _array(self, key: str) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind != _STRING and kind not in _FIXED:
            raise _broken(self._path, f"{key} is an array of the unknown type {kind}")
        first = min(count, 8)
        items = [self._value(key, kind) for _ in range(first)]
        if kind == _STRING:
            for _ in range(count - first):
                self.take(self.number("Q"))
        else:
            self.take((count - first) * struct.calcsize(f"<{_FIXED[kind]}"))
        return items

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read name, shape in torch's order, type and offset of a tensor."""
        name, num_dimensions = self.text(), self.number("I")
        if not 0 < num_dimensions <= MOST_DIMENSIONS:
            raise _broken(self._path, f"tensor {name} has {num_dimensions} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(num_dimensions)]))
        return name, shape, self.number("I"), self.number("Q")


def _placed(
    path: Path, infos: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int
) -> dict[str, Located]:
    """Locate the tensors and check that they fill the file, each in its own bytes. Raises `DataError`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {kind.value: kind for kind in GGMLQuantizationType}
    tensors: dict[str, Located] = {}
    end = begin
    for name, shape, number, offset in sorted(infos, key=lambda info: info[3]):
        kind = known.get(number)
        if kind is None:
            raise _broken(path, f"tensor {name} has the unknown type {number}")
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise _broken(
                path, f"tensor {name} has the shape {list(shape)}, and {kind.name} has blocks of {block}"
            )
        if name in tensors:
            raise _broken(path, f"{name} is in its header twice")
        start = begin + offset
        expected = begin + -(-(end - begin) // alignment) * alignment
        if start != expected:
            what = (
                "overlaps the tensor before it"
                if start < end
                else "does not follow at once what is before it"
            )
            raise _broken(
                path,
                f"tensor {name} {what}: its offset is {offset}, and {expected - begin} is the next multiple of "
                f"{alignment}",
            )
        end = start + prod(shape) // block * block_bytes
        tensors[name] = Located(kind.name, shape, start, end - start)
    size = path.stat().st_size
    if not tensors:
        raise _broken(path, "it has no tensor")
    if size < end:
        raise DataError(f"{path}: cut at {size} of {end} bytes: fetch it again")
    if size - end >= alignment:
        raise _broken(path, f"{size - end} bytes follow its last tensor")
    return tensors


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} is no intact GGUF file ({what}): fetch it again")
