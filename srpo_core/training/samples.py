"""Sample images that show how training proceeds."""

import torch
from torch import Tensor

from srpo_core.protocols import BaseModel
from srpo_core.randomness import keyed_noise
from srpo_core.training.batch import TrainingPrompts
from srpo_core.training.job import TrainJob


def generate_samples(
    model: BaseModel, job: TrainJob, prompts: TrainingPrompts, device: torch.device
) -> Tensor:
    """Generate images (B, 3, H, W) in [0, 1] of the first training prompts, always from the same noise.

    A sharded model needs this call on every rank.
    """
    count = min(job.train.sample_prompts, len(prompts.texts))
    noise = [keyed_noise(model.latent_shape, job.seed, "sample", text) for text in prompts.texts[:count]]
    return model.generate(
        prompts.condition.batch(slice(count), device),
        torch.stack(noise).to(device),
        num_inference_steps=job.train.rollout.num_inference_steps,
        guidance_scale=job.train.rollout.guidance_scale,
    )


def png_row(images: Tensor) -> bytes:
    """Encode images (B, 3, H, W) side by side as one PNG."""
    from io import BytesIO

    from torchvision.utils import save_image

    file = BytesIO()
    save_image(images, file, format="png", nrow=len(images))
    return file.getvalue()
