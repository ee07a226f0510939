"""Reopen a written format with third-party readers: safetensors, gguf-py, diffusers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.artifacts import require
from srpo_core.errors import ArtifactError
from srpo_core.quantizers.key_map import diffusers_names
from srpo_core.weights.files import CONFIG

if TYPE_CHECKING:
    from torch import Tensor


def read_file(path: Path) -> Mapping[str, "Tensor"]:
    """Read a single file in BFL names; returns float32 weights by their diffusers names.

    Raises:
        ArtifactError: the file is damaged or not FLUX.
    """
    with _reading(path):
        state = _read_gguf(require(path)) if path.suffix == ".gguf" else _read_safetensors(require(path))
        return _in_diffusers_names(state)


def read_directory(directory: Path) -> Mapping[str, "Tensor"]:
    """Read the weights of a diffusers directory with `from_pretrained`, in float32.

    Raises:
        ArtifactError: the directory is damaged.
    """
    import json

    import diffusers
    import torch

    with _reading(directory):
        config = json.loads(require(directory / CONFIG).read_text(encoding="utf-8"))
        kind = getattr(diffusers, config["_class_name"])
        model = kind.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        state: Mapping[str, Tensor] = model.state_dict()
    return state


def _read_safetensors(path: Path) -> dict[str, "Tensor"]:
    from safetensors.torch import load_file

    stored = load_file(path)
    ends = ".weight_scale"
    scales = {
        name.removesuffix("_scale"): stored.pop(name).float() for name in list(stored) if name.endswith(ends)
    }
    return {name: value.float() * scales.get(name, 1.0) for name, value in stored.items()}


def _read_gguf(path: Path) -> dict[str, "Tensor"]:
    import numpy as np
    import torch
    from gguf import GGUFReader, quants

    state = {}
    for tensor in GGUFReader(path).tensors:
        shape = tuple(int(length) for length in reversed(tensor.shape))
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        state[tensor.name] = torch.from_numpy(np.array(values, np.float32).reshape(shape))
    return state


def _in_diffusers_names(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    import torch

    shapes = {name: tuple(value.shape) for name, value in state.items()}
    parts = {
        name: [state[piece.tensor][piece.start : piece.stop] for piece in pieces]
        for name, pieces in diffusers_names(shapes).items()
    }
    # a part of a single tensor stays a view
    return {name: some[0] if len(some) == 1 else torch.cat(some) for name, some in parts.items()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise one `ArtifactError` for whatever libraries raise on damaged weights."""
    from safetensors import SafetensorError

    failures: tuple[Any, ...] = (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RuntimeError,
    )
    try:
        yield
    except (*failures, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path} is damaged ({cause}): remove it and run the same command again"
        ) from error
