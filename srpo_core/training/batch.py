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
from srpo_core.generation.pairs import Pairs, pair_noise, read_pairs
from srpo_core.models.embeddings import read_embeddings, read_latents
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws, epoch_index, keyed_integer, keyed_noise, keyed_share
from srpo_core.training.job import TrainJob


@dataclass(frozen=True)
class TrainingPrompts:
    """The encoded training prompts, on the CPU. Tensors are mapped from the file: only the rows that are used are read.

    real: packed latents (N, S, C) of a real image of each prompt, None if training starts from none; pairs: cached images,
    None if training starts from none.
    """

    texts: Sequence[str]
    styles: Sequence[str]
    condition: Condition
    real: Tensor | None
    pairs: Pairs | None = None


def read_training_prompts(*, real_images: bool, cached: bool = False) -> TrainingPrompts:
    """Read the training prompts that the stage embed wrote below the working directory, and the pairs of stage rollouts.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    texts, styles, condition = read_embeddings("train")
    real = read_latents("train") if real_images else None
    return TrainingPrompts(texts, styles, condition, real, read_pairs(texts) if cached else None)


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
    positions = [(step - 1) * job.train.batch_size + i for i in samples]
    rows = [epoch_index(position, len(prompts.texts), job.seed) for position in positions]
    if prompts.pairs is None:
        keys = [("noise", step, i) if job.train.noise == "per_sample" else ("noise", step) for i in samples]
        noise = [keyed_noise(latent_shape, job.seed, *key) for key in keys]
        given = _real_images(job, prompts, step, dict(zip(samples, rows, strict=True)), device)
    else:
        chosen = [pair_of(job, prompts, position) for position in positions]
        seed = prompts.pairs.seed
        noise = [pair_noise(latent_shape, seed, prompts.texts[row], number) for row, number in chosen]
        given = {place: prompts.pairs.image(*key).to(device) for place, key in enumerate(chosen)}
    pair = job.control_words.pair
    return TrainBatch(
        prompts=[prompts.texts[row] for row in rows],
        condition=prompts.condition.batch(rows, device),
        noise=torch.stack(noise).to(device),
        draws=Draws(job.seed, step, samples),
        given=given,
        wanted=_control_word(job.control_words, pair.wanted, job.seed, "wanted", step),
        unwanted=_control_word(job.control_words, pair.unwanted, job.seed, "unwanted", step),
    )


def pair_of(job: TrainJob, prompts: TrainingPrompts, position: int) -> tuple[int, int]:
    """Return the row of the prompt and the number of the cached pair of the sample at a position of all steps' samples."""
    assert prompts.pairs is not None
    epoch = position // len(prompts.texts)
    return epoch_index(position, len(prompts.texts), job.seed), prompts.pairs.number(epoch)


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
