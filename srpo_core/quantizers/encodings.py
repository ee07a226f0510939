"""Encode weights as bytes: the float types.

An encoding works on chunks that are a multiple of its block. bfloat16 has only 65 536 values, so their float8 codes
are looked up in a table that is computed from the definition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from srpo_core.quantizers.chunks import Chunk
from srpo_core.quantizers.decoding import float8_values

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Encoder = Callable[[Chunk], Array]

FP8_LARGEST: Final = 448.0
F16_LARGEST: Final = 65504.0
BF16_LARGEST: Final = 3.3895313892515355e38
F32_LARGEST: Final = 3.4028234663852886e38
Q8_LARGEST: Final = 127


@dataclass(frozen=True)
class Encoding:
    """A type of stored weights.

    name: in the container; block, block_bytes: weights per block, and bytes; largest: magnitudes above it are
    clipped; encoder: from a tensor's scale to the function that encodes its chunks; decode: encoded bytes to float32
    values, without the scale; scaled: one scale per tensor is stored beside it; meant: the type that this one
    replaces where it does not fit a tensor's rows.
    """

    name: str
    block: int
    block_bytes: int
    largest: float
    encoder: "Callable[[float], Encoder]"
    decode: "Callable[[Array], Array]"
    scaled: bool = False
    meant: str | None = None

    def num_bytes(self, weights: int) -> int:
        """Return the size in bytes of `weights` encoded weights."""
        return weights // self.block * self.block_bytes


def float32(chunk: Chunk) -> "Array":
    """Weights as float32."""
    return chunk.float32


def bfloat16(chunk: Chunk) -> "Array":
    """Weights as bfloat16 bits, rounded to nearest even, clamped to the largest finite value."""
    import numpy as np

    if chunk.dtype == "BF16":
        return chunk.stored
    bits = np.clip(chunk.float32, -BF16_LARGEST, BF16_LARGEST).view(np.uint32)
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def float16(chunk: Chunk) -> "Array":
    """Weights as float16, rounded to nearest even, clamped to ±65504."""
    import numpy as np

    if chunk.dtype == "F16":
        return chunk.stored
    values: Array = chunk.float32
    if chunk.largest > F16_LARGEST:
        values = np.clip(values, -F16_LARGEST, F16_LARGEST)
    return values.astype(np.float16)


def float8_bits(values: "Array") -> "Array":
    """float8_e4m3fn bits of float32 values, rounded to nearest even, clamped to ±448."""
    import numpy as np

    magnitude = np.minimum(np.abs(values), np.float32(FP8_LARGEST))
    bits = magnitude.view(np.uint32)
    # drop 20 of 23 mantissa bits; the exponent's bias changes from 127 to 7
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # below 2^-6 the spacing is 2^-9, which is the spacing of float32 at 2^14
    anchor = np.float32(2**14)
    subnormal = (magnitude + anchor).view(np.uint32) - anchor.view(np.uint32)
    code = np.where(magnitude < np.float32(2**-6), subnormal, normal).astype(np.uint8)
    return code | (np.signbit(values).astype(np.uint8) << 7)


def float8_encoder(scale: float) -> "Encoder":
    """Encode weights divided by `scale` as float8_e4m3fn."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    def exact(values: "Array") -> "Array":
        return float8_bits(values if scale == 1 else values / np.float32(scale))

    with np.errstate(invalid="ignore", over="ignore"):  # the table also has NaN, which is never looked up
        codes = exact(Chunk(np.arange(1 << 16, dtype=np.uint16), "BF16").float32)
    # not with pa.array, which imports pandas
    table = pa.Array.from_buffers(pa.uint8(), codes.size, [None, pa.py_buffer(codes)])
    unchecked = pc.TakeOptions(boundscheck=False)

    def encode(chunk: Chunk) -> "Array":
        if chunk.dtype != "BF16":
            return exact(chunk.float32)
        # Arrow takes 16-bit indices directly; numpy widens them to 64 bits first.
        places = pa.Array.from_buffers(pa.uint16(), chunk.stored.size, [None, pa.py_buffer(chunk.stored)])
        return np.frombuffer(
            pc.call_function("array_take", [table, places], unchecked).buffers()[1],
            np.uint8,
            chunk.stored.size,
        )

    return encode


def bfloat16_values(encoded: "Array") -> "Array":
    """float32 values of bfloat16 bits."""
    import numpy as np

    return Chunk(encoded.view(np.uint16), "BF16").float32


def _plain(encode: "Encoder") -> "Callable[[float], Encoder]":
    return lambda _scale: encode


def _float16_values(encoded: "Array") -> "Array":
    import numpy as np

    return encoded.view(np.float16).astype(np.float32)


def _float32_values(encoded: "Array") -> "Array":
    import numpy as np

    return encoded.view(np.float32)


F32: Final = Encoding("F32", 1, 4, F32_LARGEST, _plain(float32), _float32_values)
F16: Final = Encoding("F16", 1, 2, F16_LARGEST, _plain(float16), _float16_values)
BF16: Final = Encoding("BF16", 1, 2, BF16_LARGEST, _plain(bfloat16), bfloat16_values)
FP8: Final = Encoding("F8_E4M3", 1, 1, FP8_LARGEST, float8_encoder, float8_values)
FP8_SCALED: Final = Encoding("F8_E4M3", 1, 1, FP8_LARGEST, float8_encoder, float8_values, scaled=True)
