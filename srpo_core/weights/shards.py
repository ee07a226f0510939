"""Safetensors sharded across processes, in the layout of torch.distributed.checkpoint: write, read, join."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import replacing
from srpo_core.errors import ArtifactError
from srpo_core.weights.files import Entry, safetensors_head
from srpo_core.weights.headers import fault_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

PORTION: Final = 1 << 30  # bytes of weights held in memory while they are joined


def write_shards(
    directory: Path, tensors: Mapping[str, "Tensor"], group: "ProcessGroup | None" = None
) -> None:
    """Write this rank's share of `tensors` as safetensors; all ranks of `group` must call this."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    with _without_group_warning():
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def read_shards(directory: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Fill `tensors`, each whole or sharded, from safetensors of any sharding, by any writer.

    Raises:
        ArtifactError: the directory cannot be read, a file in it is cut or no safetensors file, or it lacks a tensor.
    """
    _require_intact(directory)
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    try:
        # each rank reads what it needs, so no collective is required
        with _without_group_warning():
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, CheckpointException) as error:
        cause = " ".join(str(error).split())[-200:]
        raise ArtifactError(f"{directory} cannot be read as weights: {cause}") from error


def _require_intact(directory: Path) -> None:
    """Raise `ArtifactError` for a file that is cut or something else: torch's reader would print a trace for it."""
    for path in sorted(directory.glob("*.safetensors")):
        if fault := fault_of(path):
            raise ArtifactError(f"{directory} cannot be read as weights: {fault}")


@contextmanager
def _without_group_warning() -> Iterator[None]:
    """Suppress the warning that no process group is used: that is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


def read_whole(directory: Path) -> dict[str, "Tensor"]:
    """Read all tensors of a directory of shards, each whole, by name. Raises `ArtifactError` as `read_shards` does."""
    import torch

    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in _shapes(directory).items()}
    read_shards(directory, tensors)
    return tensors


def join_shards(
    directory: Path,
    target: Path,
    *,
    rest: Path | None = None,
    dtype: "torch.dtype | None" = None,
    change: "Callable[[str, Tensor], None] | None" = None,
) -> None:
    """Write the tensors of sharded safetensors as one file in safetensors' own order, a gigabyte at a time.

    rest: directory of the tensors that `directory` lacks, such as buffers, which are not trained; dtype: type of all
    written tensors, None for their own; change: changes a tensor, given its name, in place before it is written.

    Raises:
        ArtifactError: see `read_shards`.
    """
    import torch

    shapes = _shapes(directory)
    origins = dict.fromkeys(shapes, directory)
    if rest is not None:
        shapes = _shapes(rest) | shapes
        origins = dict.fromkeys(shapes, rest) | origins
    if dtype is not None:
        shapes = {name: (shape, dtype) for name, (shape, _) in shapes.items()}
    # safetensors sorts by the size of the type, then by name
    names = sorted(shapes, key=lambda name: (-shapes[name][1].itemsize, name))
    entries = [safetensors_entry(name, *shapes[name]) for name in names]
    with replacing(target) as partial, partial.open("wb") as file:
        file.write(safetensors_head(entries, {"format": "pt"}))
        for portion in _portions(names, shapes):
            tensors = {name: torch.empty(shapes[name][0], dtype=shapes[name][1]) for name in portion}
            for origin in {origins[name] for name in portion}:
                read_shards(origin, {name: tensors[name] for name in portion if origins[name] == origin})
            for name, tensor in tensors.items():
                if change is not None:
                    change(name, tensor)
                file.write(tensor.flatten().view(torch.uint8).numpy().data)


def safetensors_entry(name: str, shape: tuple[int, ...], dtype: "torch.dtype") -> Entry:
    """Describe a tensor of a safetensors file."""
    return Entry(name, _SAFETENSORS[str(dtype)], shape, prod(shape) * dtype.itemsize)


_SAFETENSORS = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.bool": "BOOL",
}


def _shapes(directory: Path) -> dict[str, tuple[tuple[int, ...], "torch.dtype"]]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    _require_intact(directory)
    entries: dict[str, Any] = dict(
        HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    )
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in entries.items()}


def _portions(names: Iterable[str], shapes: Mapping[str, Any]) -> Iterator[list[str]]:
    """Split names in their order into groups of about `PORTION` bytes."""
    portion: list[str] = []
    size = 0
    for name in names:
        shape, dtype = shapes[name]
        portion.append(name)
        size += prod(shape) * dtype.itemsize
        if size > PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
