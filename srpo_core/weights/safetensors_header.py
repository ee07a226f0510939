"""Read and check the header of a safetensors file, without its tensors and without torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import DataError

# safetensors refuses longer headers, too
LONGEST_HEADER: Final = 100_000_000
LENGTH_BYTES: Final = 8
METADATA: Final = "__metadata__"
_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_ENDS: Final = 2  # of a tensor: its first byte, and the byte after its last

BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
        **dict.fromkeys(("F32", "I32", "U32"), 32),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
        **dict.fromkeys(("BOOL", "I8", "U8"), 8),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        "F4": 4,
    }
)


@dataclass(frozen=True)
class Located:
    """A tensor in a file: its type, shape, first byte from the start of the file, and size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def read_safetensors_header(path: Path) -> tuple[dict[str, Located], dict[str, str]]:
    """Return the tensors of a safetensors file by name, in the order of their bytes, and the file's metadata.

    Each tensor fills its bytes, they follow each other without gaps, and the file ends with the last. The library
    safetensors has opened the file.

    Raises:
        DataError: the file is cut, has bytes that belong to no tensor, or its header breaks a rule of the format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        first = file.read(1)
        if size <= LENGTH_BYTES or first != b"{" or length > LONGEST_HEADER:
            raise DataError(
                f"{path}: this is no safetensors file (it does not begin with a length and a JSON header): "
                "give a .safetensors file"
            )
        text = first + file.read(length - 1)
    begin = LENGTH_BYTES + length
    if size < begin:
        raise DataError(f"{path}: cut at {size} of more than {begin} bytes: fetch it again")
    header = _parse(path, text)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, f"{METADATA} is no object of strings")
    tensors = _in_order(path, {name: _located(path, name, entry, begin) for name, entry in header.items()})
    end = begin
    for name, tensor in tensors.items():
        if tensor.start != end:
            problem = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise _broken(path, f"tensor {name} {problem}")
        end = tensor.start + tensor.num_bytes
    if size < end:
        raise DataError(f"{path}: cut at {size} of {end} bytes: fetch it again")
    if size > end:
        raise _broken(path, f"{size - end} bytes follow its last tensor")
    _require_opened(path)
    return tensors, metadata


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _broken(path, f"{twice} is in its header twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is no JSON, {_short(error)}") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    return header


def _located(path: Path, name: str, entry: object, begin: int) -> Located:
    """Check one entry of the header. Raises `DataError`."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _broken(path, f"the entry of tensor {name} does not have the keys {', '.join(sorted(_FIELDS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(path, f"tensor {name} has the unknown type {_short(dtype)}")
    if not _counts(shape):
        raise _broken(path, f"tensor {name} has the shape {_short(shape)}")
    if not _counts(offsets) or len(offsets) != _ENDS or offsets[0] > offsets[1]:
        raise _broken(path, f"tensor {name} has the offsets {_short(offsets)}")
    start, stop = offsets
    if prod(shape) * BITS[dtype] != (stop - start) * 8:
        raise _broken(
            path,
            f"tensor {name} of type {dtype} and shape {_short(shape)} does not fill {stop - start} bytes",
        )
    return Located(dtype, tuple(shape), begin + start, stop - start)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _in_order(path: Path, tensors: Mapping[str, Located]) -> dict[str, Located]:
    if not tensors:
        raise _broken(path, "it has no tensor")
    return dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].num_bytes)))


def _require_opened(path: Path) -> None:
    """Raise `DataError` unless the library safetensors opens the file, whatever its further rules are."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise _broken(path, _short(error)) from None


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} is no intact safetensors file ({what}): fetch it again")


def _short(value: object) -> str:
    text = re.sub(r"\s+", " ", str(value))
    longest = 100
    return text if len(text) <= longest else f"{text[:longest]}…"
