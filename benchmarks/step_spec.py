"""Load the specification of a training step to time: arguments, models and inputs.

`spec.json` has the reference's arguments, model configurations, caption, midpoint and optimizer. `spec.safetensors`
has the weights (`flux.*`, `vae.*`, `hps.*`) and the encoded prompt. Without it, weights are initialized with seed 0 by
each module's `reset_parameters`, and the prompt is random, with `text_tokens` of `spec.json` as its length.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TEXT_TOKENS = 64  # of a random prompt if spec.json has no `text_tokens`
LATENT_STRIDE = 8
LATENT_CHANNELS = 16


@dataclass(frozen=True)
class StepSpec:
    """One step: `args` as the reference names them, models and inputs in float32.

    prompt_embeds: (1, L, D); pooled: (1, P).
    """

    args: dict[str, Any]
    caption: str
    mid_timestep: int
    optimizer: dict[str, Any]
    image_size: int
    context_length: int
    flux: nn.Module
    vae: Any
    clip: Any
    prompt_embeds: Tensor
    pooled: Tensor

    def noise(self, step: int) -> Tensor:
        """Draw the latent noise (1, 16, h/8, w/8) of a step, in bfloat16 like the reference."""
        shape = (1, LATENT_CHANNELS, self.args["h"] // LATENT_STRIDE, self.args["w"] // LATENT_STRIDE)
        return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.bfloat16)


def load_spec(directory: Path) -> StepSpec:
    """Read the specification in `directory` and build its models."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from open_clip import CLIP

    spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    configs = spec["configs"]
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(**configs["flux"])
    vae = AutoencoderKL(**configs["vae"])
    clip = CLIP(**configs["hps"])
    tokens = spec.get("text_tokens", TEXT_TOKENS)
    prompt_embeds = torch.randn(1, tokens, configs["flux"]["joint_attention_dim"])
    pooled = torch.randn(1, configs["flux"]["pooled_projection_dim"])
    weights = directory / "spec.safetensors"
    if weights.is_file():
        tensors = load_file(weights)
        for prefix, module in (("flux.", flux), ("vae.", vae), ("hps.", clip)):
            module.load_state_dict(_below(tensors, prefix))
        prompt_embeds, pooled = tensors["encoder_hidden_states"], tensors["pooled_prompt_embeds"]
    return StepSpec(
        args=spec["args"],
        caption=spec["caption"],
        mid_timestep=spec["mid_timestep"],
        optimizer=spec["optimizer"],
        image_size=configs["hps"]["vision_cfg"]["image_size"],
        context_length=configs["hps"]["text_cfg"]["context_length"],
        flux=flux.train(),
        vae=vae.eval(),
        clip=clip.eval(),
        prompt_embeds=prompt_embeds,
        pooled=pooled,
    )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
