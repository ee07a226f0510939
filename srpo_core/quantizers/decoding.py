"""Decode quantized weights to float32: float8 by a table, GGUF's blocks by gguf-py."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from srpo_core.errors import DataError
from srpo_core.quantizers.chunks import ITEM_BYTES

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# PyTorch's name of each type of float8
FLOAT8: Final[Mapping[str, str]] = MappingProxyType({"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"})
# gguf-py processes sixteen rows at once.
_ROWS: Final = 16


def float8_values(encoded: "Array", dtype: str = "F8_E4M3") -> "Array":
    """Return the float32 values of float8 bits; a NaN or an infinity stays one."""
    import numpy as np

    return np.take(_float8_table(dtype), encoded.view(np.uint8))


@cache
def _float8_table(dtype: str) -> "Array":
    """Return the float32 value of each of the 256 codes."""
    import numpy as np

    codes = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":  # the upper byte of a float16
        with np.errstate(invalid="ignore"):
            return (codes << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).astype(np.float32)
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - np.float32(10)))
    values[(codes & 0x7F) == 0x7F] = np.nan  # noqa: PLR2004  # e4m3fn has no infinity, and one NaN of each sign
    return np.copysign(values, np.where(codes < 128, 1.0, -1.0)).astype(np.float32)  # noqa: PLR2004


def gguf_values(encoded: "Array", dtype: str) -> "Array":
    """Return the float32 values of whole blocks of a GGUF type.

    Raises:
        DataError: gguf-py does not decode this type.
    """
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType[dtype]
    flat = encoded.reshape(-1).view(np.uint8)
    rows = _ROWS if flat.nbytes % (_ROWS * GGML_QUANT_SIZES[kind][1]) == 0 else 1
    try:
        return np.asarray(quants.dequantize(flat.reshape(rows, -1), kind), np.float32).reshape(-1)
    except NotImplementedError:
        raise DataError(f"GGUF's type {dtype} cannot be decoded") from None


def block_of(dtype: str, *, gguf: bool) -> tuple[int, int] | None:
    """Return the weights and bytes of a block of a type that can be read; None for another type.

    gguf: whether it is a type of GGUF, else one of safetensors.
    """
    if dtype in ITEM_BYTES:
        return 1, ITEM_BYTES[dtype]
    return _gguf_block(dtype) if gguf else (1, 1) if dtype in FLOAT8 else None


@cache
def _gguf_block(dtype: str) -> tuple[int, int] | None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block: tuple[int, int] = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    try:
        gguf_values(np.zeros(block[1], np.uint8), dtype)
    except DataError:
        return None
    return block


def values_of(encoded: "Array", dtype: str) -> "Array":
    """Return the float32 values of encoded weights of a type that `block_of` knows and `ITEM_BYTES` does not."""
    return float8_values(encoded, dtype) if dtype in FLOAT8 else gguf_values(encoded, dtype)
