"""Encode prompts to text embeddings, and images to latents."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from srpo_core.config import ModelSettings
from srpo_core.errors import DataError
from srpo_core.models import loading
from srpo_core.models.registry import base_entry
from srpo_core.protocols import Condition

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
