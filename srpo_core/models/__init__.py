"""Base models. To add one: a module beside `flux.py` and a line in `registry.py`."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.config import ModelSettings, TrainSettings
from srpo_core.models import loading
from srpo_core.models.attention import DEFAULT
from srpo_core.models.encoding import (
    encode_image_batches,
    encode_prompt_batches,
    encode_prompts,
    latent_shape,
)
from srpo_core.models.four_bit import read_in_four_bits
from srpo_core.models.loaded import LoadedBase, load_base
from srpo_core.models.lora import add_lora, initialize_lora, write_lora
from srpo_core.models.registry import BASES, base_entry, require_release_formats
from srpo_core.models.sharding import read_base_weights, shard
from srpo_core.protocols import BaseModel, Condition
from srpo_core.weights.adapters import adapters_file
from srpo_core.weights.files import CONFIG, WEIGHTS
from srpo_core.weights.shards import join_shards, read_whole

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "BASES",
    "LoadedBase",
    "base_entry",
    "encode_image_batches",
    "encode_prompt_batches",
    "encode_prompts",
    "files_to_load",
    "latent_shape",
    "load_base",
    "load_trainable",
    "load_transformer",
    "meta_trainable",
    "require_release_formats",
    "write_transformer",
]


def files_to_load(settings: ModelSettings, transformer: Path | None = None) -> list[Path]:
    """List the files that `load_base` reads, sorted: of the pipeline neither text encoders nor other weights.

    Raises:
        ArtifactError: the pipeline's directory does not exist.
    """
    root = loading.existing_pipeline(settings.path, loading.OTHERS)
    own = root / "transformer"
    weights = [own] if transformer is None else [transformer]
    if transformer is not None and adapters_file(transformer):
        weights.append(own)
    files = [
        file
        for part in (root / "vae", root / "scheduler", *weights)
        for file in part.rglob("*")
        if file.is_file()
    ]
    return sorted({root / "model_index.json", own / CONFIG, *files})


def load_trainable(
    settings: ModelSettings,
    train: TrainSettings,
    *,
    seed: int,
    device: "torch.device",
    mesh: "DeviceMesh | None" = None,
) -> BaseModel:
    """Load the base model for training on a device: all weights or adapters, replicated or sharded over `mesh` (FSDP2).

    A sharded model is never whole in memory: each worker reads its share of each tensor.
    """
    import torch

    num_sizes = len(train.buckets or [()])
    four_bit = train.tune == "lora" and train.lora.frozen == "nf4"
    model = loading.load_base(base_entry(settings), settings, empty=four_bit or mesh is not None)
    transformer = model.transformer
    if four_bit:
        read_in_four_bits(transformer, Path(settings.path) / "transformer", device)
    elif train.tune == "lora":
        transformer.to(getattr(torch, train.lora.frozen))
    if train.tune == "lora":
        add_lora(transformer, train.lora)
    if mesh is None:
        if train.tune == "lora":
            initialize_lora(transformer, seed)
        return model.to(device).prepare(train.compute, num_sizes=num_sizes)
    model.prepare(train.compute, num_sizes=num_sizes)  # compiles blocks before they are sharded
    shard(transformer, mesh, gather=torch.bfloat16 if train.compute.autocast else None)
    transformer.to_empty(device=device)
    read_base_weights(transformer, Path(settings.path) / "transformer")
    if train.tune == "lora":
        initialize_lora(transformer, seed)
    return model.to(device)


def meta_trainable(
    settings: ModelSettings, train: TrainSettings, *, transformer: Mapping[str, Any], vae: Mapping[str, Any]
) -> tuple[BaseModel, Condition]:
    """Create the model that `load_trainable` would load, and a condition of one prompt, on the meta device.

    transformer, vae: configurations of the two parts. Nothing is compiled or gathered, and autocast is off.
    """
    model, condition = loading.meta_base(base_entry(settings), settings, transformer=transformer, vae=vae)
    if train.tune == "lora":
        add_lora(model.transformer, train.lora)
    plain = {"autocast": False, "compile": False, "gather_rollout": False, "attention": DEFAULT}
    model.prepare(train.compute.model_copy(update=plain))
    model.transformer.train()
    return model, condition


def load_transformer(settings: ModelSettings, directory: Path) -> Any:
    """Load a transformer that training saved, in the class of the settings' base model."""
    return loading.load_transformer(base_entry(settings), directory)


def write_transformer(settings: ModelSettings, train: TrainSettings, shards: Path, directory: Path) -> None:
    """Write what training saved in `shards` as a directory that `load_base` reads, with the base's config.json.

    The weights of full training become one safetensors file. Adapters are written in the form that diffusers'
    `load_lora_weights` reads; `merge_adapters` adds them to the base.
    """
    base = Path(settings.path) / "transformer"
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base / CONFIG, directory / CONFIG)
    if train.tune == "lora":
        write_lora(read_whole(shards), train.lora, directory)
    else:
        join_shards(shards, directory / WEIGHTS, rest=base)
