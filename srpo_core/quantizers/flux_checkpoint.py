"""Read a FLUX transformer from disk, in either naming, in chunks.

Files are memory-mapped and pages are released once they are read, so memory does not grow with the checkpoint.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from srpo_core.errors import DataError
from srpo_core.quantizers.key_map import (
    Architecture,
    Joint,
    Rows,
    architecture_of,
    bfl_names,
    diffusers_names,
    require_exact,
)

if TYPE_CHECKING:
    import numpy as np

# The metadata key under which our own single files hold the model's config.json.
CONFIG_METADATA: Final = "srpo_config"

# Weights per chunk: small enough that reading, encoding, hashing and writing it stay in the second-level cache.
CHUNK: Final = 1 << 18

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})
# FLUX.1's heads are 128 wide, with these rotary axes. Other widths require a config.json.
_FLUX_HEAD: Final = 128
_FLUX_AXES: Final = (16, 56, 56)


@dataclass(frozen=True)
class Stored:
    """Location of a tensor: the mapped file, its type in the file, its shape, and its first byte."""

    file: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def row_items(self) -> int:
        """Weights per row."""
        return math.prod(self.shape[1:])


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


class FluxCheckpoint:
    """The tensors of a checkpoint under both names; `joints`: in the order of the architecture."""

    def __init__(
        self, files: Sequence[Path], tensors: Mapping[str, Stored], config: Mapping[str, Any] | None
    ) -> None:
        """Use `open_flux`."""
        self.files = files
        self.where = str(files[0] if len(files) == 1 else files[0].parent)
        where = self.where
        self._tensors = tensors
        shapes = {name: stored.shape for name, stored in tensors.items()}
        self.bfl_naming = "img_in.weight" in tensors
        self.architecture: Architecture = architecture_of(shapes, bfl=self.bfl_naming)
        joints = self.architecture.joints()
        stored_names = {
            name for joint in joints for name in ((joint.bfl,) if self.bfl_naming else joint.diffusers)
        }
        require_exact(shapes, stored_names, where)
        self.joints: Sequence[Joint] = joints
        own = {name: (Rows(name, 0, shape[0]),) for name, shape in shapes.items()}
        self._bfl: Mapping[str, tuple[Rows, ...]] = own if self.bfl_naming else bfl_names(shapes)
        self._diffusers: Mapping[str, tuple[Rows, ...]] = diffusers_names(shapes) if self.bfl_naming else own
        self.config: Mapping[str, Any] | None = config or self._inferred_config()
        # By tensor, first byte and size of a chunk, so that further files, and the pass for a scale, reuse it.
        self._largest: dict[tuple[str, int, int], float] = {}

    @property
    def hidden(self) -> int:
        """The width of the model."""
        return self.shape(self.joints[0].bfl, bfl=True)[0]

    @property
    def num_bytes(self) -> int:
        """Size in bytes of all tensors as they are stored."""
        return sum(
            ITEM_BYTES[stored.dtype] * stored.row_items * stored.shape[0] for stored in self._tensors.values()
        )

    def shape(self, name: str, *, bfl: bool) -> tuple[int, ...]:
        """Return the shape of a tensor by its name in one of the namings."""
        pieces = self._rows(name, bfl=bfl)
        height = sum(piece.stop - piece.start for piece in pieces)
        return (height, *self._tensors[pieces[0].tensor].shape[1:])

    def chunks(self, name: str, *, bfl: bool) -> Iterator[Chunk]:
        """Yield the weights of a tensor row by row, in chunks of at most `CHUNK`.

        Raises:
            DataError: a weight is NaN or infinite.
        """
        import numpy as np

        for piece in self._rows(name, bfl=bfl):
            stored = self._tensors[piece.tensor]
            item = ITEM_BYTES[stored.dtype]
            first = stored.start + piece.start * stored.row_items * item
            count = (piece.stop - piece.start) * stored.row_items
            kind = np.dtype({"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[stored.dtype])
            for offset in range(0, count, CHUNK):
                size, place = min(CHUNK, count - offset), first + offset * item
                data = np.frombuffer(stored.file, kind, size, place)
                key = (piece.tensor, place, size)
                largest = self._largest.get(key)
                if largest is None:
                    largest = self._largest[key] = largest_magnitude(data, stored.dtype)
                if largest == math.inf:
                    raise DataError(
                        f"{self.where}: {piece.tensor} holds a NaN or an infinity; nothing was written"
                    )
                yield Chunk(data, stored.dtype, largest)
            _release_pages(stored.file, first, count * item)

    def stored_as(self, name: str, dtype: str, *, bfl: bool) -> bool:
        """Return whether all of a tensor is stored in this type."""
        return all(self._tensors[piece.tensor].dtype == dtype for piece in self._rows(name, bfl=bfl))

    def _rows(self, name: str, *, bfl: bool) -> tuple[Rows, ...]:
        return (self._bfl if bfl else self._diffusers)[name]

    def _inferred_config(self) -> Mapping[str, Any] | None:
        """Infer config.json from the shapes if heads are as wide as FLUX.1's, else return None."""
        shape = {
            name: self.shape(f"{name}.weight", bfl=True)
            for name in ("img_in", "txt_in", "vector_in.in_layer")
        }
        head = self.shape("double_blocks.0.img_attn.norm.query_norm.scale", bfl=True)[0]
        if head != _FLUX_HEAD:
            return None
        out_channels = self.shape("final_layer.linear.weight", bfl=True)[0]
        in_channels = shape["img_in"][1]
        return {
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": head,
            "axes_dims_rope": list(_FLUX_AXES),
            "guidance_embeds": self.architecture.guidance,
            "in_channels": in_channels,
            "joint_attention_dim": shape["txt_in"][1],
            "num_attention_heads": self.hidden // head,
            "num_layers": self.architecture.num_double,
            "num_single_layers": self.architecture.num_single,
            "out_channels": None if out_channels == in_channels else out_channels,
            "patch_size": 1,
            "pooled_projection_dim": shape["vector_in.in_layer"][1],
        }


def _release_pages(file: mmap.mmap, start: int, length: int) -> None:
    """Release whole pages that were read; they stay in the system's cache, but not in this process."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        file.madvise(mmap.MADV_DONTNEED, first, last - first)
