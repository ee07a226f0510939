"""Encode prompts to text embeddings, and images to latents, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
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
    """Encode prompts in memory; see `encode_prompt_batches`."""
    return Condition.concatenate(
        list(encode_prompt_batches(settings, prompts, batch_size=batch_size, device=device))
    )


def encode_prompt_batches(
    settings: ModelSettings, prompts: Sequence[str], *, batch_size: int, device: "torch.device | None" = None
) -> Iterator[Condition]:
    """Yield the embeddings of prompts in batches, in `model.embeddings`' data type and in the order given.

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
    for start in range(0, len(prompts), batch_size):
        with torch.no_grad():
            condition = entry.encode_prompt(
                pipeline,
                prompts[start : start + batch_size],
                max_sequence_length=settings.max_sequence_length,
            )
        yield condition.to(getattr(torch, settings.embeddings)).to(cpu)


def encode_image_batches(
    settings: ModelSettings, batches: "Iterable[Tensor]", *, device: "torch.device"
) -> "Iterator[Tensor]":
    """Yield the packed latents (B, S, C) of batches of images (B, 3, H, W) in [0, 1], by the base model's VAE.

    device: where the VAE runs; the latents are on the CPU.
    """
    entry = base_entry(settings)
    vae = loading.load_vae(entry, settings).eval().to(device)
    architecture = entry.architecture(vae, None, height=settings.height, width=settings.width)
    for images in batches:
        yield architecture.encode(vae, images.to(device)).cpu()


def latent_shape(settings: ModelSettings) -> tuple[int, int]:
    """Return (S, C) of the packed latents of one image. Raises `ArtifactError` as `load_base` does."""
    entry = base_entry(settings)
    vae = loading.empty_vae(entry, settings)
    return entry.architecture(vae, None, height=settings.height, width=settings.width).latent_shape
