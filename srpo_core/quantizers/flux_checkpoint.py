"""Read a FLUX transformer from disk, in either naming, in chunks.

Files are memory-mapped and pages are released once they are read, so memory does not grow with the checkpoint.
"""

import json
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
from srpo_core.weights.files import CONFIG, WEIGHTS

if TYPE_CHECKING:
    import numpy as np

INDEX: Final = f"{WEIGHTS}.index.json"
TRANSFORMER: Final = "transformer"
# The metadata key under which our own single files hold the model's config.json.
CONFIG_METADATA: Final = "srpo_config"

# Weights per chunk: small enough that reading, encoding, hashing and writing it stay in the second-level cache.
CHUNK: Final = 1 << 18

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})
_MAX_HEADER: Final = 100 << 20
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
        """See `open_flux`."""
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


def open_flux(path: Path) -> FluxCheckpoint:
    """Open a FLUX transformer: a diffusers directory (of the transformer or the pipeline), or one safetensors file.

    A file may have either naming, below a prefix such as `model.diffusion_model.`; tensors outside the prefix are
    ignored.

    Raises:
        DataError: the checkpoint is missing, damaged, not FLUX, or already quantized.
    """
    files, config = checkpoint_files(path)
    tensors: dict[str, Stored] = {}
    for file in files:
        found, metadata = _read_header(file)
        tensors |= found
        if config is None and CONFIG_METADATA in metadata:
            config = json.loads(metadata[CONFIG_METADATA])
    checkpoint = _without_prefix(tensors, path)
    for name, stored in checkpoint.items():
        if stored.dtype not in ITEM_BYTES:
            raise DataError(
                f"{path}: {name} is stored as {stored.dtype}; known are {', '.join(ITEM_BYTES)}: "
                "start from the file in full precision"
            )
    return FluxCheckpoint(files, checkpoint, config)


def checkpoint_files(path: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the safetensors files of a checkpoint, and its config.json if it has one."""
    if path.is_file():
        return [path], None
    directory = path / TRANSFORMER if (path / "model_index.json").is_file() else path
    if (directory / INDEX).is_file():
        names = sorted(set(_read_json(directory / INDEX).get("weight_map", {}).values()))
        files = [directory / name for name in names]
    else:
        files = [directory / WEIGHTS]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{path} is no FLUX checkpoint ({file.name} is missing): give a diffusers directory or a "
                ".safetensors file"
            )
    config = directory / CONFIG
    return files, _read_json(config) if config.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged (no JSON object): fetch it again")
    return value


def _read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Map the tensors of a safetensors file; returns them with the file's metadata."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER)))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            tensors[name] = Stored(mapped, entry["dtype"], tuple(entry["shape"]), 8 + length + start)
            _require_inside(tensors[name], stop - start, size)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise DataError(f"{path} is no intact safetensors file ({error}): fetch it again") from None
    return tensors, metadata


def _require_inside(stored: Stored, length: int, size: int) -> None:
    expected = ITEM_BYTES.get(stored.dtype)
    if stored.start + length > size:
        raise ValueError("it is cut off")
    if expected is not None and stored.shape and expected * stored.row_items * stored.shape[0] != length:
        raise ValueError(f"shape {list(stored.shape)} does not fill {length} bytes")


def _without_prefix(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    """Return the transformer's tensors without their prefix."""
    for first in ("img_in.weight", "x_embedder.weight"):
        prefixes = {name.removesuffix(first) for name in tensors if name.endswith(first)}
        for prefix in sorted(prefixes, key=len):
            if not prefix or prefix.endswith("."):
                return {
                    name.removeprefix(prefix): stored
                    for name, stored in tensors.items()
                    if name.startswith(prefix)
                }
    some = ", ".join(sorted(tensors)[:3]) or "nothing"
    raise DataError(
        f"{path} is no FLUX transformer: neither img_in.weight nor x_embedder.weight is in it, but {some}"
    )


def _release_pages(file: mmap.mmap, start: int, length: int) -> None:
    """Release whole pages that were read; they stay in the system's cache, but not in this process."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        file.madvise(mmap.MADV_DONTNEED, first, last - first)
