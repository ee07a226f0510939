"""Base models. To add one: a module beside `flux.py` and a line in `BASES`."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from srpo_core.config import ModelSettings, TrainSettings
from srpo_core.errors import pick
from srpo_core.models.flux import (
    encode_flux_images,
    encode_flux_prompts,
    load_flux,
    load_flux_transformer,
)
from srpo_core.models.lora import add_lora, initialize_lora, merge_lora, write_lora
from srpo_core.models.sharding import read_base_weights, shard
from srpo_core.protocols import BaseModel, Condition
from srpo_core.weights.shards import join_shards, read_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


class PromptEncoder(Protocol):
    """Encodes prompts by the base's text encoders."""

    def __call__(
        self, settings: ModelSettings, prompts: Sequence[str], *, batch_size: int, device: "torch.device"
    ) -> Condition:
        """Encode prompts in the order given on a device; the result lies on the CPU."""
        ...


class ImageEncoder(Protocol):
    """Encodes images by the base's VAE."""

    def __call__(
        self, settings: ModelSettings, batches: "Iterable[Tensor]", *, device: "torch.device"
    ) -> "Tensor":
        """Encode batches of images in the order given on a device; the result lies on the CPU."""
        ...


class BaseLoader(Protocol):
    """Loads a base model."""

    def __call__(self, settings: ModelSettings, *, empty: bool = False) -> BaseModel:
        """Load it, or leave its transformer without weights on the meta device."""
        ...


@dataclass(frozen=True)
class BaseEntry:
    """One entry of the registry `bases`: how to load it, its transformer alone, and how to encode inputs.

    load: with `empty`, the transformer is left on the meta device.
    """

    load: "BaseLoader"
    load_transformer: Callable[[Path], Any]
    encode_prompts: PromptEncoder
    encode_images: ImageEncoder


BASES: Final[Mapping[str, BaseEntry]] = MappingProxyType(
    {"flux": BaseEntry(load_flux, load_flux_transformer, encode_flux_prompts, encode_flux_images)}
)


def load_base(settings: ModelSettings, transformer: Path | None = None) -> BaseModel:
    """Load the named base model for drawing, with its own weights or a directory's; none asks for a gradient.

    Raises:
        ConfigError: there is no such base model.
        ArtifactError: a file is missing or damaged.
    """
    base = pick(BASES, settings.base, "base model")
    model = base.load(settings, empty=transformer is not None)
    if transformer is not None:
        model.transformer = base.load_transformer(transformer)
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
    """Load the base model to be trained on a device: all of it or adapters, whole or cut over `mesh` (FSDP2).

    Cut, it is never whole in memory: each worker reads its share of each tensor.
    """
    import torch

    base = pick(BASES, settings.base, "base model")
    model = base.load(settings, empty=mesh is not None)
    transformer: Any = model.transformer
    if train.tune == "lora":
        transformer.to(getattr(torch, train.lora.frozen))
        add_lora(transformer, train.lora)
    if mesh is None:
        if train.tune == "lora":
            initialize_lora(transformer, seed)
        return model.to(device).prepare(train.compute)
    model.prepare(train.compute)  # blocks are compiled, and the copy for rollouts made, before they are cut
    shard(transformer, mesh, gather=torch.bfloat16 if train.compute.autocast else None)
    transformer.to_empty(device=device)
    read_base_weights(transformer, Path(settings.path) / "transformer")
    if train.tune == "lora":
        initialize_lora(transformer, seed)
    model.to(device).weights_changed()
    return model


def load_transformer(settings: ModelSettings, directory: Path) -> Any:
    """Load a transformer that training saved, in the class of the settings' base model."""
    return pick(BASES, settings.base, "base model").load_transformer(directory)


def write_transformer(settings: ModelSettings, train: TrainSettings, shards: Path, directory: Path) -> None:
    """Write what training saved in `shards` as a diffusers directory with one `diffusion_pytorch_model.safetensors`.

    Adapters are merged into the base, and lie beside it in the form that diffusers' `load_lora_weights` reads.
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
        shutil.copyfile(base / "config.json", directory / "config.json")
        join_shards(shards, directory / "diffusion_pytorch_model.safetensors")


def encode_prompts(
    settings: ModelSettings, prompts: Sequence[str], *, batch_size: int, device: "torch.device | None" = None
) -> Condition:
    """Encode prompts by the text encoders of the settings' base model, in the order given.

    device: where they compute, None for the CPU, on which the result lies in any case.
    """
    import torch

    encode = pick(BASES, settings.base, "base model").encode_prompts
    return encode(settings, prompts, batch_size=batch_size, device=device or torch.device("cpu"))


def encode_images(
    settings: ModelSettings, batches: "Iterable[Tensor]", *, device: "torch.device"
) -> "Tensor":
    """Packed latents (N, S, C) of batches of images (B, 3, H, W) in [0, 1], by the VAE of the settings' base model.

    device: where it computes; the result lies on the CPU.
    """
    return pick(BASES, settings.base, "base model").encode_images(settings, batches, device=device)
