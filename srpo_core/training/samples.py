"""Sample images that show how training proceeds."""

import torch
from torch import Tensor

from srpo_core.protocols import BaseModel
from srpo_core.randomness import keyed_noise
from srpo_core.training.batch import TrainingPrompts
from srpo_core.training.job import TrainJob
from srpo_core.training.micro_batches import images_per_call
from srpo_core.training.turns import gather_turns, own_turns


def generate_samples(
    model: BaseModel,
    job: TrainJob,
    prompts: TrainingPrompts,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Generate images (B, 3, H, W) in [0, 1] of the first training prompts, always from the same noise.

    The ranks share the images: every rank calls this, generates equally many, and receives all in order.
    """
    count = min(job.train.sample_prompts, len(prompts.texts))
    mine, at_once = own_turns(count, rank, world), images_per_call(job.train, world)
    images = []
    for start in range(0, len(mine), at_once):
        rows = mine[start : start + at_once]
        noise = [keyed_noise(model.latent_shape, job.seed, "sample", prompts.texts[row]) for row in rows]
        images.append(
            model.generate(
                prompts.condition.batch(rows, device),
                torch.stack(noise).to(device),
                num_inference_steps=job.train.rollout.num_inference_steps,
                guidance_scale=job.train.rollout.guidance_scale,
            )
        )
    return gather_turns(torch.cat(images), count, world, device)


def png_row(images: Tensor) -> bytes:
    """Encode images (B, 3, H, W) side by side as one PNG."""
    from io import BytesIO

    from torchvision.utils import save_image

    file = BytesIO()
    save_image(images, file, format="png", nrow=len(images))
    return file.getvalue()
