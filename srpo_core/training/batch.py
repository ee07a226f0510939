"""The training prompts, and the batch of each step.

Every random number is keyed by the global sample index, so the number of workers does not change a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo_core.algorithm.control_words import word_by_weight, word_in_turn
from srpo_core.algorithm.method import TrainBatch
from srpo_core.algorithm.rollout import real_share
from srpo_core.config import ControlWords, TrainSettings
from srpo_core.models.embeddings import read_embeddings, read_latents
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws, epoch_index, keyed_integer, keyed_noise, keyed_share
from srpo_core.training.job import TrainJob


@dataclass(frozen=True)
class TrainingPrompts:
    """The encoded training prompts, on the CPU. Tensors are mapped from the file: only the rows that are used are read.

    real: packed latents (N, S, C) of a real image of each prompt, None if training starts from none.
    """

    texts: Sequence[str]
    styles: Sequence[str]
    condition: Condition
    real: Tensor | None


def read_training_prompts(*, real_images: bool) -> TrainingPrompts:
    """Read the training prompts that the stage embed wrote below the working directory.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    texts, styles, condition = read_embeddings("train")
    return TrainingPrompts(texts, styles, condition, read_latents("train") if real_images else None)


def image_size(train: TrainSettings, seed: int, step: int) -> tuple[int, int] | None:
    """Return height and width of a step's images, the same for all samples and ranks; None without `train.buckets`."""
    if train.buckets is None:
        return None
    return train.buckets[keyed_integer(0, len(train.buckets) - 1, seed, "bucket", step)]


def step_batch(
    job: TrainJob,
    prompts: TrainingPrompts,
    step: int,
    samples: Sequence[int],
    *,
    latent_shape: tuple[int, int],
    device: torch.device,
) -> TrainBatch:
    """Return the `samples` of a step's global batch, by their global indices from 0 to batch_size - 1."""
    rows = [epoch_index((step - 1) * job.train.batch_size + i, len(prompts.texts), job.seed) for i in samples]
    keys = [("noise", step, i) if job.train.noise == "per_sample" else ("noise", step) for i in samples]
    noise = torch.stack([keyed_noise(latent_shape, job.seed, *key) for key in keys])
    pair = job.control_words.pair
    return TrainBatch(
        prompts=[prompts.texts[row] for row in rows],
        condition=prompts.condition.batch(rows, device),
        noise=noise.to(device),
        draws=Draws(job.seed, step, samples),
        real=_real_images(job, prompts, step, dict(zip(samples, rows, strict=True)), device),
        wanted=_control_word(job.control_words, pair.wanted, job.seed, "wanted", step),
        unwanted=_control_word(job.control_words, pair.unwanted, job.seed, "unwanted", step),
    )


def _control_word(words: ControlWords, weights: Mapping[str, float], seed: int, side: str, step: int) -> str:
    if words.choice == "in_turn":
        return word_in_turn(weights, step)
    return word_by_weight(weights, seed, side, step)


def _real_images(
    job: TrainJob, prompts: TrainingPrompts, step: int, rows: Mapping[int, int], device: torch.device
) -> dict[int, Tensor]:
    """Return the latents of the samples that start from a real image, by their place in the batch.

    rows: the row of the prompt, by global sample index.
    """
    if prompts.real is None:
        return {}
    return {
        place: prompts.real[row].to(device)
        for place, (i, row) in enumerate(rows.items())
        if keyed_share(job.seed, "source", step, i) < real_share(job.train.rollout)
    }
