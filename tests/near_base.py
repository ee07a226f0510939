"""Write a checkpoint like one of training: float32, close to the tiny base."""

from pathlib import Path

import torch

BASE = Path(__file__).resolve().parents[1] / "assets/tiny/family/base"


def write_near_base(directory: Path) -> None:
    """Write it to a diffusers directory, with the same weights each time."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel.from_pretrained(BASE / "transformer", torch_dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 2e-4)
    model.save_pretrained(directory)
