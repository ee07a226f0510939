"""Adapters (LoRA) in the file that diffusers' `load_lora_weights` reads: find, read, and merge them into a base's weights.

The file has for each layer `transformer.<layer>.lora_A.weight` (rank, in) and `transformer.<layer>.lora_B.weight`
(out, rank), with the factor alpha / rank included. A checkpoint of adapters is a directory with this file and the
base's config.json, and without weights.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from srpo_core.artifacts import LORA_FILE
from srpo_core.errors import ArtifactError
from srpo_core.weights.files import CONFIG, WEIGHTS
from srpo_core.weights.headers import fault_of
from srpo_core.weights.shards import join_shards

if TYPE_CHECKING:
    from torch import Tensor

PREFIX: Final = "transformer."
DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"

Pair = tuple["Tensor", "Tensor"]


def adapters_file(directory: Path) -> Path | None:
    """Return the file of a directory that holds adapters instead of weights; None for any other directory."""
    file = directory / LORA_FILE
    return file if file.is_file() and not any(directory.glob(f"{WEIGHTS}*")) else None


def read_adapters(file: Path) -> dict[str, Pair]:
    """Read the pair of matrices A (rank, in) and B (out, rank) of each layer, by the layer's name.

    Raises:
        ArtifactError: the file is damaged or holds anything else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if fault := fault_of(file):
        raise ArtifactError(fault)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{file} cannot be read as adapters: {cause}") from error
    layers = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in tensors})
    expected = {f"{layer}{end}" for layer in layers for end in (DOWN, UP)}
    if not layers or expected != tensors.keys() or not all(layer.startswith(PREFIX) for layer in layers):
        raise ArtifactError(
            f"{file} is no file of adapters: each layer needs transformer.<layer>{DOWN} and {UP}, and nothing else"
        )
    return {layer.removeprefix(PREFIX): (tensors[layer + DOWN], tensors[layer + UP]) for layer in layers}


def merge_adapters(base: Path, file: Path, target: Path) -> None:
    """Write a base's transformer with adapters merged into it as a float32 diffusers directory.

    A gigabyte of weights is in memory at a time.

    base: directory of the base's transformer.

    Raises:
        ArtifactError: a file is damaged, or the adapters are of another base.
    """
    import torch

    adapters: Mapping[str, Pair] = read_adapters(file)
    merged = set()

    def with_adapters(name: str, weight: "Tensor") -> None:
        pair = adapters.get(name.removesuffix(".weight"))
        if pair is None or not name.endswith(".weight"):
            return
        down, up = pair
        if (len(up), down.shape[1]) != tuple(weight.shape):
            raise ArtifactError(
                f"{file} is of another base than {base}: {name} has the shape {list(weight.shape)}"
            )
        weight.addmm_(up.float(), down.float())
        merged.add(name.removesuffix(".weight"))

    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base / CONFIG, target / CONFIG)
    join_shards(base, target / WEIGHTS, dtype=torch.float32, change=with_adapters)
    if missing := sorted(adapters.keys() - merged):
        raise ArtifactError(f"{file} is of another base than {base}, which has no layer {missing[0]}")
