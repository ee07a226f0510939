"""Write weight files sequentially: header first, SHA-256 while writing, visible only when complete."""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import replacing

if TYPE_CHECKING:
    import numpy as np

CONFIG: Final = "config.json"
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"  # diffusers' name of a model's weights

GGUF_ALIGNMENT: Final = 32
GGUF_ARCHITECTURE: Final = "flux"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its name, type, shape and size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class HashedFile:
    """A file to append to. Data are hashed as they are written, while they are in the processor's cache."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._seen = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: "bytes | np.ndarray[Any, Any]") -> None:
        """Append bytes, or a contiguous array as its bytes."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # numpy 2 arrays are buffers
        self._seen.update(view)
        self.num_bytes += len(view)
        while view:
            view = view[self._file.write(view) or 0 :]

    def pad(self, alignment: int) -> None:
        """Append zeros up to a multiple of `alignment`."""
        self.write(bytes(-self.num_bytes % alignment))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes written so far, in hexadecimal."""
        return self._seen.hexdigest()

    def close(self, *, sync: bool) -> None:
        """Close the file; sync: flush it to the disk first."""
        if sync:
            os.fsync(self._file.fileno())
        self._file.close()


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """Yield a file that replaces `path` if the block succeeds, and leaves nothing if it raises.

    Partial files of killed writers of the same path are removed.
    """
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink(missing_ok=True)
    with replacing(path) as partial:
        file = HashedFile(partial)
        try:
            yield file
            file.close(sync=True)
        finally:
            file.close(sync=False)


def safetensors_head(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a safetensors file whose tensors follow in the order of `entries`, without gaps."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for entry in entries:
        stop = start + entry.num_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def gguf_head(entries: Sequence[Entry], *, file_type: str, metadata: Mapping[str, str]) -> bytes:
    """Return the header of a GGUF file, written by gguf-py; each tensor follows at a multiple of 32 bytes."""
    import numpy as np
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

    with TemporaryDirectory(prefix="srpo-gguf-") as scratch:
        path = Path(scratch) / "head.gguf"
        writer = GGUFWriter(path, GGUF_ARCHITECTURE)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_file_type(LlamaFileType[file_type])
        for key, value in metadata.items():
            writer.add_string(key, value)
        for entry in entries:
            writer.add_tensor_info(
                entry.name,
                entry.shape,
                np.dtype(np.float32),
                entry.num_bytes,
                raw_dtype=GGMLQuantizationType[entry.dtype],
            )
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()
