"""Low-rank adapters (LoRA, Hu et al. 2021) on a base's transformer, by peft and diffusers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.artifacts import LORA_FILE
from srpo_core.config import LoraSettings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.models.sharding import blocks
from srpo_core.weights.adapters import DOWN, UP, read_adapters

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "default"


def add_lora(transformer: Any, settings: LoraSettings) -> None:
    """Freeze the transformer and add an adapter, a pair of trainable matrices, to each linear layer of `settings.targets`.

    The adapters keep peft's weights until `initialize_lora`.

    Raises:
        ConfigError: a target names no linear layer of a block.
    """
    from peft import LoraConfig

    names = targets(transformer, settings)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names)
    transformer.requires_grad_(requires_grad=False)
    transformer.add_adapter(config, adapter_name=ADAPTER)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # master weights, whatever the type of the frozen weights


def targets(transformer: Any, settings: LoraSettings) -> list[str]:
    """List the linear layers within blocks whose names end with one of the settings' targets."""
    import torch

    within = {module for block in blocks(transformer) for module in block.modules()}
    linear = [
        name
        for name, module in transformer.named_modules()
        if module in within and isinstance(module, torch.nn.Linear)
    ]
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.split(".", 2)[2] for name in linear})
            raise ConfigError(f"train.lora.targets: no layer {target!r}: known are {', '.join(known)}")
    return [name for name in linear if any(f".{name}".endswith(f".{t}") for t in settings.targets)]


def initialize_lora(transformer: Any, seed: int) -> None:
    """Set the adapters' weights before the first step, in float32, sharded across workers or not."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if parameter.requires_grad:
                weights: torch.Tensor = initial_weights(name, tuple(parameter.shape), seed)
                if isinstance(parameter, DTensor):
                    # every rank computes the same, so nothing is sent
                    weights = distribute_tensor(
                        weights.to(parameter.device),
                        parameter.device_mesh,
                        parameter.placements,
                        src_data_rank=None,
                    )
                parameter.copy_(weights)


def initial_weights(name: str, shape: tuple[int, ...], seed: int) -> "Tensor":
    """Compute the initial weights of an adapter's matrix, the same for any number of workers.

    A is uniform, as in peft and the paper's code (Kaiming, a = √5); B is zero, so that the adapter changes nothing.
    """
    import hashlib

    import torch

    if ".lora_B." in name:
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def write_lora(adapters: "Mapping[str, Tensor]", settings: LoraSettings, directory: Path) -> Path:
    """Write trained adapters, by parameter name, as the file that diffusers' `load_lora_weights` reads.

    B is multiplied by alpha / rank, so that a reader without alpha computes the same.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in adapters.items():
        scale = settings.alpha / settings.rank if ".lora_B." in name else 1.0
        tensors[f"transformer.{name.replace(f'.{ADAPTER}.', '.')}"] = (tensor * scale).contiguous()
    path = directory / LORA_FILE
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path


def put_on_adapters(transformer: Any, file: Path) -> None:
    """Put the adapters of a file on a transformer without adapters; each in the type of its layer.

    Raises:
        ArtifactError: the file is damaged, or of a transformer with other layers.
    """
    pairs = read_adapters(file)
    layers = dict(transformer.named_modules())
    for name, (down, up) in pairs.items():
        layer = layers.get(name)
        if layer is None or (len(up), down.shape[1]) != (layer.out_features, layer.in_features):
            raise ArtifactError(f"{file} holds adapters of another base: this one has no such layer {name!r}")
    tensors = {
        f"{name}{end}": tensor.float()
        for name, pair in pairs.items()
        for end, tensor in zip((DOWN, UP), pair, strict=True)
    }
    transformer.load_lora_adapter(tensors, prefix=None, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    transformer.requires_grad_(requires_grad=False)
    transformer.delete_adapters([])  # deletes none, but offloading learns of the new parameters


def take_off_adapters(transformer: Any) -> None:
    """Remove the adapters of `put_on_adapters`, and leave the transformer as it was."""
    transformer.delete_adapters(ADAPTER)
