"""llama.cpp's blocks of weights, for GGUF: Q8_0 is encoded here, the K-types by ggml, the others by gguf-py."""

import ctypes
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from srpo_core.errors import ConfigError
from srpo_core.quantizers.chunks import CHUNK, Chunk
from srpo_core.quantizers.decoding import gguf_values
from srpo_core.quantizers.encodings import BF16, F16, F16_LARGEST, F32, Encoding

if TYPE_CHECKING:
    from srpo_core.quantizers.encodings import Array, Encoder

BLOCK: Final = 32
SUPER_BLOCK: Final = 256
Q8_BYTES: Final = 2 + BLOCK
Q8_STEPS: Final = 127
# Added to a float32 below 2^22, it leaves the nearest integer in the low bits.
_ROUNDING: Final = 1.5 * 2**23
# The bits of infinity in bfloat16: below it are the finite magnitudes, in ascending order.
_INFINITE: Final = 0x7F80
# gguf-py processes sixteen rows at once.
_ROWS: Final = 16

# llama.cpp's replacements for rows that super-blocks do not divide; rows that no block divides stay F16.
FALLBACKS: Final[Mapping[str, str]] = MappingProxyType({"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"})


class Q8Encoder:
    """Encodes blocks of 32: a float16 step, the largest magnitude over 127, and 32 signed bytes.

    Like ggml's reference, except that exact halves are rounded to even. Arrays are allocated once, because allocation
    costs more here than the arithmetic; the returned array is reused for the next chunk.
    """

    def __init__(self, _scale: float) -> None:
        import numpy as np

        self._words = np.empty(CHUNK, np.uint32)
        self._magnitudes = np.empty((2, CHUNK), np.uint16)
        self._rounded = np.empty(CHUNK, np.uint8)
        self._packed = np.empty(CHUNK // BLOCK * Q8_BYTES, np.uint8)
        # the largest magnitude of a bfloat16 block is a bfloat16 value, so its step is looked up
        bits = np.arange(_INFINITE, dtype=np.uint32) << 16
        self._steps, self._inverses = _q8_steps(bits.view(np.float32))

    def __call__(self, chunk: Chunk) -> "Array":
        """Encode a chunk."""
        import numpy as np

        size, blocks = chunk.stored.size, chunk.stored.size // BLOCK
        words, packed = self._words[:size], self._packed[: blocks * Q8_BYTES]
        values, rounded = words.view(np.float32), self._rounded[:size]
        if chunk.dtype == "BF16":
            np.left_shift(chunk.stored, 16, out=words, dtype=np.uint32)
            largest = self._largest_bits(chunk.stored)
            steps, inverses = self._steps.take(largest), self._inverses.take(largest)
        else:
            np.copyto(values, chunk.float32)
            steps, inverses = _q8_steps(_halved(np.abs(values), blocks))
        values *= np.repeat(inverses, BLOCK)
        values += np.float32(_ROUNDING)
        np.copyto(rounded, words, casting="unsafe")
        # copy each block as one item: numpy copies short rows far more slowly
        np.ndarray(blocks, "<f2", packed, 0, (Q8_BYTES,))[:] = steps
        np.ndarray(blocks, f"V{BLOCK}", packed, 2, (Q8_BYTES,))[:] = rounded.view(f"V{BLOCK}")
        return packed

    def _largest_bits(self, stored: "Array") -> "Array":
        """Return the largest magnitude of each block as bits, which have the order of the magnitudes."""
        import numpy as np

        # the maximum of 2, 4, 8 neighbours from each position on, in long rows, which vectorize
        ours, theirs = self._magnitudes[:, : stored.size]
        np.bitwise_and(stored, 0x7FFF, out=ours)
        for reach in (1, 2, 4):
            np.maximum(ours[:-reach], ours[reach:], out=theirs[:-reach])
            ours, theirs = theirs, ours
        return _halved(ours[::8].copy(), stored.size // BLOCK).astype(np.intp)


def _halved(values: "Array", size: int) -> "Array":
    import numpy as np

    while values.size > size:
        values = np.maximum(values[0::2], values[1::2])
    return values


def _q8_steps(largest: "Array") -> tuple["Array", "Array"]:
    """Return the steps of blocks with these largest magnitudes, and their inverses, 0 where the step is 0."""
    import numpy as np

    step = largest / np.float32(Q8_STEPS)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / step
        stored = step.astype("<f2")
    inverse[step == 0] = 0
    return stored, inverse


def _by_gguf(name: str) -> Encoding:
    """Return a type that gguf-py encodes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]

    def encode(chunk: Chunk) -> "Array":
        rows = _ROWS if chunk.stored.size % (_ROWS * block) == 0 else 1
        encoded: Array = quants.quantize(chunk.float32.reshape(rows, -1), kind)
        return encoded

    encoder = Q8Encoder if name == "Q8_0" else lambda _scale: encode
    return Encoding(name, block, size, F16_LARGEST, encoder, lambda data: gguf_values(data, name))


def _by_ggml(name: str) -> Encoding:
    """Return a type that only ggml encodes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]

    def encoder(_scale: float) -> "Encoder":
        import numpy as np

        ggml = _ggml(name)

        def encode(chunk: Chunk) -> "Array":
            values = np.ascontiguousarray(chunk.float32)
            packed = np.empty(values.size // block * size, np.uint8)
            rows = values.size // block
            written = ggml.ggml_quantize_chunk(
                kind.value, values.ctypes.data, packed.ctypes.data, 0, rows, block, None
            )
            assert written == packed.nbytes, "ggml writes as many bytes as its block sizes imply"
            return packed

        return encode

    return Encoding(name, block, size, F16_LARGEST, encoder, lambda data: gguf_values(data, name))


@cache
def _ggml(name: str) -> Any:
    """Load the library ggml-base of the package libggml-python.

    Raises:
        ConfigError: it is not installed.
    """
    package = importlib.util.find_spec("libggml")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(f"type {name} needs ggml: pip install libggml-python")
    (library,) = sorted(Path(package.submodule_search_locations[0]).glob("lib*/libggml-base.so"))[:1]
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return ggml


@cache
def encoding_of(name: str) -> Encoding:
    """Return the encoding of a GGUF type by llama.cpp's name. Raises `ConfigError` if ggml is needed and missing."""
    plain = {"F32": F32, "F16": F16, "BF16": BF16}
    if name in plain:
        return plain[name]
    if name not in FALLBACKS:
        return _by_gguf(name)
    _ggml(name)
    return _by_ggml(name)


def encoding_for_row(name: str, row_items: int) -> Encoding:
    """Return the encoding `name`, or llama.cpp's replacement if its blocks do not divide rows of `row_items` weights."""
    encoding = encoding_of(name)
    if row_items % encoding.block == 0:
        return encoding
    other = encoding_for_row(FALLBACKS[name], row_items) if name in FALLBACKS else F16
    return replace(other, meant=name)
