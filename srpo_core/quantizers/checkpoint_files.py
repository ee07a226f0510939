"""A diffusers transformer directory as a set of tensors, and a new one written tensor by tensor.

Memory does not grow with the checkpoint: one tensor is read, cast and written at a time.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from srpo_core.artifacts import replacing, require
from srpo_core.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
INDEX: Final = "diffusion_pytorch_model.safetensors.index.json"

# Elements cast at once: a chunk stays in the processor's cache.
CHUNK: Final = 1 << 18

_DTYPE_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch.float32": "F32",
        "torch.float16": "F16",
        "torch.bfloat16": "BF16",
        "torch.float8_e4m3fn": "F8_E4M3",
    }
)


@dataclass(frozen=True)
class CastLoss:
    """What a format did to the weights that it stores in its own type; shares of them, in [0, 1].

    clipped: weights beyond the type's largest value; zeroed: weights other than 0 that became 0.
    """

    clipped: float
    zeroed: float


def empty_model(directory: Path) -> Any:
    """The model of a diffusers directory on the meta device: names and shapes, no weights."""
    import diffusers
    import torch

    config = _read_json(directory / CONFIG)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise ArtifactError(
            f"{directory / CONFIG}: _class_name {config.get('_class_name')!r} is no class of diffusers"
        )
    with _reading(directory / CONFIG), torch.device("meta"):
        return kind.from_config(config)


def rewrite(source: Path, target: Path, dtypes: Mapping[str, "torch.dtype"], own: "torch.dtype") -> CastLoss:
    """Write the checkpoint of `source` to `target`, each tensor in the type that `dtypes` gives it.

    The bytes depend on nothing but the tensors: those of the widest type first, then by name, as
    safetensors' own writer does. The loss is counted over the tensors stored as `own`.

    Raises:
        ArtifactError: the source is damaged, does not hold exactly the tensors of `dtypes`, or has a NaN.
    """
    name_of_type = str(own).removeprefix("torch.")
    config = require(source / CONFIG).read_text(encoding="utf-8")
    files = _files_of_tensors(source, dtypes)
    order = sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, name))
    shapes = {name: _open_tensor(files[name], name).get_shape() for name in order}
    losses = _Losses()
    with replacing(target / WEIGHTS) as partial, partial.open("wb") as file:
        file.write(_header(order, shapes, dtypes, {"format": "pt", "precision": name_of_type}))
        for name in order:
            # A file is opened anew for each tensor, so that the pages of the one before can go.
            tensor = _open_tensor(files[name], name)[:]
            losses.add(_write_tensor(file, tensor, dtypes[name], f"{source}: {name}"), dtypes[name] is own)
        file.flush()
        os.fsync(file.fileno())
    with replacing(target / CONFIG) as partial:
        partial.write_text(config, encoding="utf-8")
    return losses.shares()


def read_state_dict(directory: Path) -> Mapping[str, "Tensor"]:
    """Open a written format by safetensors' `load_file`, as a user would; types as stored."""
    from safetensors.torch import load_file

    with _reading(directory / WEIGHTS):
        state: Mapping[str, Tensor] = load_file(require(directory / WEIGHTS))
    return state


def read_by_diffusers(directory: Path) -> Mapping[str, "Tensor"]:
    """Open a written format by diffusers' `from_pretrained`, as a user would; cast to float32."""
    import torch

    with _reading(directory):
        model = type(empty_model(directory)).from_pretrained(
            directory, dtype=torch.float32, local_files_only=True
        )
    state: Mapping[str, Tensor] = model.state_dict()
    return state


class _Losses:
    """Sums of what the casts lost."""

    def __init__(self) -> None:
        self._sums = [0, 0, 0]

    def add(self, counts: tuple[int, int, int], counted: bool) -> None:
        if counted:
            self._sums = [total + count for total, count in zip(self._sums, counts, strict=True)]

    def shares(self) -> CastLoss:
        weights, clipped, zeroed = self._sums
        return CastLoss(clipped=clipped / max(weights, 1), zeroed=zeroed / max(weights, 1))


def _write_tensor(file: BinaryIO, tensor: "Tensor", dtype: "torch.dtype", what: str) -> tuple[int, int, int]:
    """Cast and write one tensor chunk by chunk; returns (elements, clipped, zeroed)."""
    import torch

    largest = torch.finfo(dtype).max
    clipped = zeroed = 0
    for chunk in torch.split(tensor.reshape(-1), CHUNK):
        exact = chunk.float()
        if not bool(torch.isfinite(exact).all()):
            raise ArtifactError(f"{what} holds a NaN or an infinity: select another checkpoint")
        # The cast of torch 2.14 saturates by itself; the format does not rely on it.
        cast = exact.clamp(-largest, largest).to(dtype)
        clipped += int((exact.abs() > largest).sum())
        zeroed += int(((exact != 0) & (cast.float() == 0)).sum())
        file.write(cast.view(torch.uint8).numpy().tobytes())
    return tensor.numel(), clipped, zeroed


def _header(
    order: list[str],
    shapes: Mapping[str, list[int]],
    dtypes: Mapping[str, "torch.dtype"],
    metadata: Mapping[str, str],
) -> bytes:
    """The header of a safetensors file: 8 bytes of length, then JSON padded to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in order:
        end = start + dtypes[name].itemsize * _product(shapes[name])
        kind = _DTYPE_NAMES[str(dtypes[name])]
        entries[name] = {"dtype": kind, "shape": shapes[name], "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _files_of_tensors(source: Path, expected: Mapping[str, Any]) -> dict[str, Path]:
    """The file that holds each tensor; a checkpoint in shards has several files."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    with _reading(source):
        for path in _weight_files(source):
            with safe_open(path, framework="pt") as file:
                files.update(dict.fromkeys(file.keys(), path))
    odd = sorted(expected.keys() ^ files.keys())
    if odd:
        raise ArtifactError(
            f"{source} does not hold the tensors that its config.json asks for: {len(odd)} differ, "
            f"first {odd[0]}"
        )
    return files


def _open_tensor(path: Path, name: str) -> Any:
    """A tensor of a safetensors file that is not read yet."""
    from safetensors import safe_open

    with _reading(path), safe_open(path, framework="pt") as file:
        return file.get_slice(name)


def _weight_files(source: Path) -> list[Path]:
    if (source / INDEX).is_file():
        names = sorted(set(_read_json(source / INDEX)["weight_map"].values()))
        return [require(source / name) for name in names]
    return [require(source / WEIGHTS)]


def _read_json(path: Path) -> Any:
    with _reading(path):
        return json.loads(require(path).read_text(encoding="utf-8"))


def _product(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what libraries raise on damaged weights into one `ArtifactError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is damaged ({cause}): remove it and run 'dvc repro' again") from error
