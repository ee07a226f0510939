"""Models with random weights, made on their device, and what a plan says about a step with them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch

from srpo_core.config import NULL, LoraSettings, Settings, load_settings, patched
from srpo_core.models.four_bit import fill_in_four_bits
from srpo_core.models.lora import add_lora, initialize_lora
from srpo_core.plan import TERA, Cluster, Plan, make_plan

PROFILE: Final = Path(__file__).resolve().parents[1] / "profiles/flux1_dev_lora.yaml"
# FLOP/s of dense matrix products in bfloat16, as the manufacturer states them; the first match counts
PEAKS: Final = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class RandomModels:
    """A transformer with adapters, VAE and the reward's towers, with random weights on one device.

    num_weights: of the transformer, with its adapters.
    """

    flux: Any
    vae: Any
    clip: Any
    num_weights: int


def random_models(configs: dict[str, Any], lora: LoraSettings, device: torch.device) -> RandomModels:
    """Make the models of a specification's `configs`; the frozen weights have the type of `lora.frozen`.

    The transformer is never in float32 as a whole: 12 billion parameters would need 48 GB.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from open_clip import CLIP

    torch.manual_seed(0)
    with torch.device("meta"):
        flux = FluxTransformer2DModel(**configs["flux"])
    num_frozen = sum(parameter.numel() for parameter in flux.parameters())
    if lora.frozen == "nf4":
        fill_in_four_bits(flux, fill, device)
        add_lora(flux, lora)
    else:
        flux.to(getattr(torch, lora.frozen))
        add_lora(flux, lora)
        flux.to_empty(device=device)
        fill(dict(flux.named_parameters()))
    initialize_lora(flux, seed=0)
    adapters = sum(parameter.numel() for parameter in flux.parameters() if parameter.requires_grad)
    with torch.device(device):
        vae, clip = AutoencoderKL(**configs["vae"]), CLIP(**configs["hps"])
    return RandomModels(flux.train(), vae.eval(), clip.eval(), num_frozen + adapters)


@torch.no_grad()
def fill(parameters: Mapping[str, torch.Tensor]) -> None:
    """Fill weights so that a layer keeps the scale of its input: no activation grows beyond bfloat16."""
    for name, parameter in parameters.items():
        if parameter.ndim > 1:
            parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def settings_of(
    spec: dict[str, Any], size: int, changes: Sequence[dict[str, Any]], directory: Path
) -> Settings:
    """Return the profile flux1_dev_lora for one image of `size` pixels on one GPU, with the specification's models.

    changes: patches of the settings; directory: where the models' configurations are written, for the plan.
    """
    _write(directory / "base/transformer/config.json", spec["configs"]["flux"])
    _write(directory / "base/vae/config.json", spec["configs"]["vae"])
    _write(directory / "reward/reward.json", spec["configs"]["hps"])
    ours = {
        "model": {
            "path": str(directory / "base"),
            "height": size,
            "width": size,
            "max_sequence_length": spec["text_tokens"],
        },
        "rewards": [{"scorer": "hps_v2", "path": str(directory / "reward"), "weight": 1}],
        "train": {
            "batch_size": 1,
            "early_stop": NULL,  # its scorers are not loaded here
            "rollout": {"num_inference_steps": spec["args"]["sampling_steps"]},
        },
        "resources": {"train_workers": 1, "min_train_workers": 1, "generate_workers": 1, "shard": False},
    }
    values = reduce(patched, [ours, *changes], load_settings(PROFILE).model_dump())
    return Settings.model_validate(values)


def planned(settings: Settings, peak: float | None) -> Plan:
    """Plan the step on one GPU with `peak` FLOP/s; what depends on memory, price and bandwidth is not used."""
    one = Cluster(gpus=1, memory=0, price=None, mfu=1.0, peak_flops=peak or TERA, bandwidth=1.0)
    return make_plan(settings, one)


def peak_flops(device: torch.device) -> float | None:
    """Return a GPU's peak FLOP/s in bfloat16, or None if it is not in `PEAKS` or no GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAKS.items() if known in name), None)


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")
