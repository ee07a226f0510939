"""Base models. To add one: a module beside `flux.py` and a line in `BASES`."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from srpo_core.config import ModelSettings, TrainSettings
from srpo_core.errors import ConfigError, DataError, pick
from srpo_core.models import loading
from srpo_core.models.architecture import BaseEntry
from srpo_core.models.flux import FLUX
from srpo_core.models.lora import add_lora, initialize_lora, merge_lora, write_lora
from srpo_core.models.sharding import read_base_weights, shard
from srpo_core.protocols import BaseModel, Condition
from srpo_core.weights.files import CONFIG, WEIGHTS
from srpo_core.weights.shards import join_shards, read_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

BASES: Final[Mapping[str, BaseEntry]] = MappingProxyType({"flux": FLUX})


def base_entry(settings: ModelSettings) -> BaseEntry:
    """Return the registry entry of the settings' base model. Raises `ConfigError` if there is none."""
    return pick(BASES, settings.base, "base model")


def require_release_formats(settings: ModelSettings) -> None:
    """Raise `ConfigError` unless checkpoints of the settings' base model can be written in release formats."""
    if not base_entry(settings).release_formats:
        known = ", ".join(name for name, entry in BASES.items() if entry.release_formats)
        raise ConfigError(
            f"release formats are not available for base model {settings.base!r}: known are those of {known}"
        )


def load_base(settings: ModelSettings, transformer: Path | None = None) -> BaseModel:
    """Load the base model for generation, with its own weights or a directory's; no parameter requires a gradient.

    Raises:
        ConfigError: there is no such base model.
        ArtifactError: a file is missing or damaged.
    """
    entry = base_entry(settings)
    model = loading.load_base(entry, settings, empty=transformer is not None)
    if transformer is not None:
        model.transformer = loading.load_transformer(entry, transformer)
    model.transformer.requires_grad_(False)
    return model


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

    model = loading.load_base(base_entry(settings), settings, empty=mesh is not None)
    transformer = model.transformer
    if train.tune == "lora":
        transformer.to(getattr(torch, train.lora.frozen))
        add_lora(transformer, train.lora)
    if mesh is None:
        if train.tune == "lora":
            initialize_lora(transformer, seed)
        return model.to(device).prepare(train.compute)
    model.prepare(train.compute)  # compiles blocks and makes the rollout copy before the blocks are sharded
    shard(transformer, mesh, gather=torch.bfloat16 if train.compute.autocast else None)
    transformer.to_empty(device=device)
    read_base_weights(transformer, Path(settings.path) / "transformer")
    if train.tune == "lora":
        initialize_lora(transformer, seed)
    model.to(device).weights_changed()
    return model


def meta_trainable(
    settings: ModelSettings, train: TrainSettings, *, transformer: Mapping[str, Any], vae: Mapping[str, Any]
) -> tuple[BaseModel, Condition]:
    """Create the model that `load_trainable` would load, and a condition of one prompt, on the meta device.

    transformer, vae: configurations of the two parts. Nothing is compiled or copied, and autocast is off.
    """
    model, condition = loading.meta_base(base_entry(settings), settings, transformer=transformer, vae=vae)
    if train.tune == "lora":
        add_lora(model.transformer, train.lora)
    plain = {"autocast": False, "compile": False, "rollout_copy": False}
    model.prepare(train.compute.model_copy(update=plain))
    model.transformer.train()
    return model, condition


def load_transformer(settings: ModelSettings, directory: Path) -> Any:
    """Load a transformer that training saved, in the class of the settings' base model."""
    return loading.load_transformer(base_entry(settings), directory)


def write_transformer(settings: ModelSettings, train: TrainSettings, shards: Path, directory: Path) -> None:
    """Write the weights that training saved in `shards` as a diffusers directory with one safetensors file.

    Adapters are merged into the base and are also written beside it, in the form that diffusers' `load_lora_weights`
    reads.
    """
    base = Path(settings.path) / "transformer"
    directory.mkdir(parents=True, exist_ok=True)
    if train.tune == "lora":
        adapters = read_whole(shards)
        transformer = load_transformer(settings, base)
        merge_lora(transformer, adapters, train.lora)
        transformer.save_pretrained(directory, max_shard_size="1TB")
        write_lora(adapters, train.lora, directory)
    else:
        shutil.copyfile(base / CONFIG, directory / CONFIG)
        join_shards(shards, directory / WEIGHTS, rest=base)


def encode_prompts(
    settings: ModelSettings, prompts: Sequence[str], *, batch_size: int, device: "torch.device | None" = None
) -> Condition:
    """Encode prompts with the text encoders of the settings' base model, in float32 and in the order given.

    device: where the encoders run, None for the CPU; the result is on the CPU in any case.

    Raises:
        DataError: there are no prompts.
        ArtifactError: a file of the text encoders is missing or damaged.
    """
    import torch

    if not prompts:
        raise DataError("no prompts to encode: check the splits that 'srpo stage ingest' wrote")
    entry, cpu = base_entry(settings), torch.device("cpu")
    pipeline = loading.load_text_encoders(entry, settings).to(device or cpu)
    batches = []
    with torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            condition = entry.encode_prompt(
                pipeline,
                prompts[start : start + batch_size],
                max_sequence_length=settings.max_sequence_length,
            )
            batches.append(condition.to(torch.float32).to(cpu))
    return Condition.concatenate(batches)


def encode_images(
    settings: ModelSettings, batches: "Iterable[Tensor]", *, device: "torch.device"
) -> "Tensor":
    """Encode batches of images (B, 3, H, W) in [0, 1] to packed latents (N, S, C) with the base model's VAE.

    device: where the VAE runs; the result is on the CPU.
    """
    import torch

    entry = base_entry(settings)
    vae = loading.load_vae(entry, settings).eval().to(device)
    architecture = entry.architecture(vae, None, height=settings.height, width=settings.width)
    return torch.cat([architecture.encode(vae, images.to(device)).cpu() for images in batches])
