"""Weights in chunks: the types that are read as they are stored, and the largest magnitude."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

# Weights per chunk: small enough that reading, encoding, hashing and writing it stay in the second-level cache.
CHUNK: Final = 1 << 18

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})


@dataclass(frozen=True)
class Chunk:
    """Some weights as they are stored: bfloat16 as uint16, others in numpy's own type.

    known_largest: `largest`, if it was computed before.
    """

    stored: "np.ndarray[Any, Any]"
    dtype: str
    known_largest: float | None = None

    @cached_property
    def float32(self) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The weights in float32, exactly."""
        import numpy as np

        if self.dtype == "BF16":
            wide = np.empty(self.stored.size, np.uint32)
            np.left_shift(self.stored, 16, out=wide, dtype=np.uint32)
            return wide.view(np.float32)
        return self.stored.astype(np.float32, copy=False)

    @property
    def largest(self) -> float:
        """The largest magnitude; infinite if a weight is infinite or NaN."""
        return (
            largest_magnitude(self.stored, self.dtype) if self.known_largest is None else self.known_largest
        )


def largest_magnitude(stored: "np.ndarray[Any, Any]", dtype: str) -> float:
    """Return the largest magnitude of stored weights; infinite if one is infinite or NaN."""
    import numpy as np

    width = stored.itemsize
    # Magnitudes have the order of their bits: two passes over integers, without a temporary array.
    signed = int(np.maximum.reduce(stored.view(f"i{width}")))
    unsigned = int(np.maximum.reduce(stored.view(f"u{width}")))
    bits = max(signed, unsigned - (1 << (8 * width - 1)), 0)
    if dtype == "BF16":
        bits, width = bits << 16, 4
    value: float = struct.unpack({2: "<e", 4: "<f"}[width], bits.to_bytes(width, "little"))[0]
    return value if math.isfinite(value) else math.inf
