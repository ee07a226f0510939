"""Safetensors sharded over processes, as torch.distributed.checkpoint writes them: write, read, join."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.artifacts import replacing
from srpo_core.errors import ArtifactError
from srpo_core.weights.files import Entry, safetensors_head

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

AT_ONCE = 1 << 30  # bytes of weights held in memory while they are joined


def write_shards(
    directory: Path, tensors: Mapping[str, "Tensor"], group: "ProcessGroup | None" = None
) -> None:
    """Write this rank's share of `tensors` as safetensors; called by all ranks of `group`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    with _alone():
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def read_shards(directory: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Fill `tensors`, each whole or a rank's share of it, from safetensors of any sharding, ours or others'.

    Raises:
        ArtifactError: the directory cannot be read, or lacks one of them.
    """
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    try:
        # each rank reads what it needs: nothing that a collective would add
        with _alone():
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, CheckpointException) as error:
        cause = " ".join(str(error).split())[-200:]
        raise ArtifactError(f"{directory} cannot be read as weights: {cause}") from error


@contextmanager
def _alone() -> Iterator[None]:
    """Without the warning that no process group is used, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


def read_whole(directory: Path) -> dict[str, "Tensor"]:
    """All tensors of a directory of shards, each whole, by name."""
    import torch

    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in _shapes(directory).items()}
    read_shards(directory, tensors)
    return tensors


def join_shards(directory: Path, target: Path) -> None:
    """Write the tensors of sharded safetensors as one file in safetensors' own order, a gigabyte at a time."""
    import torch

    shapes = _shapes(directory)
    # safetensors sorts by the size of the type, then by name
    names = sorted(shapes, key=lambda name: (-shapes[name][1].itemsize, name))
    entries = [_entry(name, *shapes[name]) for name in names]
    with replacing(target) as partial, partial.open("wb") as file:
        file.write(safetensors_head(entries, {"format": "pt"}))
        for some in _portions(names, shapes):
            tensors = {name: torch.empty(shapes[name][0], dtype=shapes[name][1]) for name in some}
            read_shards(directory, tensors)
            for tensor in tensors.values():
                file.write(tensor.flatten().view(torch.uint8).numpy().data)


def _entry(name: str, shape: tuple[int, ...], dtype: "torch.dtype") -> Entry:
    return Entry(name, _SAFETENSORS[str(dtype)], shape, prod(shape) * dtype.itemsize)


_SAFETENSORS = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
}


def _shapes(directory: Path) -> dict[str, tuple[tuple[int, ...], "torch.dtype"]]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    entries: dict[str, Any] = dict(
        HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    )
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in entries.items()}


def _portions(names: Iterable[str], shapes: Mapping[str, Any]) -> Iterator[list[str]]:
    """Names in their order, in groups of about `AT_ONCE` bytes."""
    import torch

    some: list[str] = []
    size = 0
    for name in names:
        some.append(name)
        size += torch.Size(shapes[name][0]).numel() * shapes[name][1].itemsize
        if size > AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
