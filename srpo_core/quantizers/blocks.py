"""llama.cpp's blocks of weights, for GGUF: Q8_0 here, the others by gguf-py, the K-types by ggml itself."""

import ctypes
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from srpo_core.errors import ConfigError
from srpo_core.quantizers.encodings import BF16, F16, F16_LARGEST, F32, Encoding
from srpo_core.quantizers.flux_checkpoint import CHUNK, Chunk

if TYPE_CHECKING:
    from srpo_core.quantizers.encodings import Array, Encoder

BLOCK: Final = 32
SUPER_BLOCK: Final = 256
Q8_BYTES: Final = 2 + BLOCK
Q8_STEPS: Final = 127
# Adding it to a float32 below 2^22 leaves the nearest integer in the low bits.
_ROUNDING: Final = 1.5 * 2**23
# gguf-py works on sixteen rows at once.
_ROWS: Final = 16

# Rows that no super-block divides, as llama.cpp replaces them; rows that no block divides stay F16.
FALLBACKS: Final[Mapping[str, str]] = MappingProxyType({"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"})


class Q8Encoder:
    """Blocks of 32: a float16 step, which is the largest magnitude over 127, and 32 signed bytes.

    As ggml's reference, but that exact halves are rounded to even. The arrays are made once: fresh memory
    costs more here than the arithmetic. What comes back is used again for the next chunk.
    """

    def __init__(self, _scale: float) -> None:
        import numpy as np

        self._words = np.empty(CHUNK, np.uint32)
        self._pairs = np.empty((2, CHUNK // 2), np.uint32)
        self._rounded = np.empty(CHUNK, np.uint8)
        self._packed = np.empty(CHUNK // BLOCK * Q8_BYTES, np.uint8)

    def __call__(self, chunk: Chunk) -> "Array":
        """Bytes of a chunk."""
        import numpy as np

        size, blocks = chunk.stored.size, chunk.stored.size // BLOCK
        words, packed = self._words[:size], self._packed[: blocks * Q8_BYTES]
        values = words.view(np.float32)
        if chunk.dtype == "BF16":
            np.left_shift(chunk.stored, 16, out=words, dtype=np.uint32)
        else:
            np.copyto(values, chunk.float32)
        step = self._maxima(chunk, values) / np.float32(Q8_STEPS)
        with np.errstate(divide="ignore"):
            inverse = 1 / step
        inverse[step == 0] = 0
        values.reshape(-1, BLOCK)[:] *= inverse[:, None]
        values += np.float32(_ROUNDING)
        np.copyto(self._rounded[:size], words, casting="unsafe")
        # each block as one item: numpy copies short rows far more slowly
        np.ndarray(blocks, "<f2", packed, 0, (Q8_BYTES,))[:] = step
        np.ndarray(blocks, f"V{BLOCK}", packed, 2, (Q8_BYTES,))[:] = self._rounded[:size].view(f"V{BLOCK}")
        return packed

    def _maxima(self, chunk: Chunk, values: "Array") -> "Array":
        """The largest magnitude of each block, by halving: long rows, which the processor does at once."""
        import numpy as np

        blocks = values.size // BLOCK
        if chunk.dtype != "BF16":
            return _halved(np.abs(values), blocks)
        # magnitudes are ordered as their bits are; two weights are one word
        first, second = self._pairs[:, : values.size // 2]
        np.bitwise_and(chunk.stored.view(np.uint32), 0x7FFF7FFF, out=second)
        np.bitwise_and(second, 0xFFFF, out=first)
        np.right_shift(second, 16, out=second)
        np.maximum(first, second, out=first)
        return (_halved(first, blocks) << 16).view(np.float32)


def _halved(values: "Array", size: int) -> "Array":
    import numpy as np

    while values.size > size:
        values = np.maximum(values[0::2], values[1::2])
    return values


def _by_gguf(name: str) -> Encoding:
    """One of the types that gguf-py quantizes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]

    def encode(chunk: Chunk) -> "Array":
        rows = _ROWS if chunk.stored.size % (_ROWS * block) == 0 else 1
        encoded: Array = quants.quantize(chunk.float32.reshape(rows, -1), kind)
        return encoded

    encoder = Q8Encoder if name == "Q8_0" else lambda _scale: encode
    return Encoding(name, block, size, F16_LARGEST, encoder, lambda data: _decoded(data, kind, size))


def _by_ggml(name: str) -> Encoding:
    """One of the types that only ggml quantizes."""
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
            assert written == packed.nbytes, "ggml writes what its sizes say"
            return packed

        return encode

    return Encoding(name, block, size, F16_LARGEST, encoder, lambda data: _decoded(data, kind, size))


def _decoded(data: "Array", kind: Any, size: int) -> "Array":
    import numpy as np
    from gguf import quants

    flat = data.reshape(-1)
    rows = _ROWS if flat.nbytes % (_ROWS * size) == 0 else 1
    return np.asarray(quants.dequantize(flat.view(np.uint8).reshape(rows, -1), kind), np.float32).reshape(-1)


@cache
def _ggml(name: str) -> Any:
    """The library ggml-base of the package libggml-python.

    Raises:
        ConfigError: it is not installed.
    """
    package = importlib.util.find_spec("libggml")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            f"type {name} needs ggml: pip install 'srpo-pipeline[gguf]' (package libggml-python)"
        )
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
    """The encoding of a GGUF type by llama.cpp's name of it. Raises `ConfigError` when ggml is needed and missing."""
    plain = {"F32": F32, "F16": F16, "BF16": BF16}
    if name in plain:
        return plain[name]
    if name not in FALLBACKS:
        return _by_gguf(name)
    _ggml(name)
    return _by_ggml(name)


def encoding_for_row(name: str, row_items: int) -> Encoding:
    """The encoding `name`, or what llama.cpp takes for rows of so many weights that its blocks do not divide."""
    encoding = encoding_of(name)
    if row_items % encoding.block == 0:
        return encoding
    return encoding_for_row(FALLBACKS[name], row_items) if name in FALLBACKS else F16
