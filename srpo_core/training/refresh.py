"""Generate cached pairs anew with the trained model, every `train.rollout.cached.refresh_every` steps.

The images of a block of steps are generated from the same noise as those of the base, by the weights at the beginning of the
block, and kept beside the checkpoints: a run that resumes within a block reads them, because those weights are gone.
"""

from dataclasses import replace
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from srpo_core.algorithm.reference import noise_of
from srpo_core.algorithm.rollout import roll_out
from srpo_core.config import TrainSettings
from srpo_core.errors import ArtifactError
from srpo_core.generation.pairs import Pairs, pair_noise
from srpo_core.models.precision import tf32
from srpo_core.protocols import BaseModel
from srpo_core.runtime.shared_files import Location
from srpo_core.training.batch import TrainingPrompts, pair_of
from srpo_core.training.job import REFRESHED, TrainJob
from srpo_core.training.micro_batches import images_per_call
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.turns import gather_turns, own_turns

LATENTS: Final = "latents"


def block_start(train: TrainSettings, step: int) -> int:
    """Return the number of steps before the block of steps that `step` belongs to; 0 is the block of the base's images."""
    every = train.rollout.cached.refresh_every
    if train.rollout.source != "cached" or not every:
        return 0
    return (step - 1) // every * every


def begins_block(train: TrainSettings, step: int) -> bool:
    """Whether the pairs of a step and of those after it are to be generated anew before it."""
    return 0 < block_start(train, step) == step - 1


def with_newer_pairs(
    job: TrainJob,
    prompts: TrainingPrompts,
    model: BaseModel,
    step: int,
    *,
    rank: int = 0,
    world: int = 1,
) -> TrainingPrompts:
    """Return the prompts with the pairs of the block that `step` belongs to; every rank calls this before the step.

    The first step of a block generates them with the model's present weights; the ranks share the work. Another step, with which
    a run resumes, reads them.

    Raises:
        ArtifactError: the file that a resumed run needs is missing or damaged.
    """
    start = block_start(job.train, step)
    if not start:
        return prompts
    pairs, keys = _pairs(prompts), _keys(job, prompts, start)
    if step == start + 1:
        images = _generate(job, prompts, model, keys, rank=rank, world=world)
        if rank == 0:
            _file(job, start).write(save({LATENTS: images.contiguous()}))
            _remove_older(job, start)
    else:
        images = _read(job, start)
    return replace(prompts, pairs=replace(pairs, newer=dict(zip(keys, images, strict=True))))


def _keys(job: TrainJob, prompts: TrainingPrompts, start: int) -> list[tuple[int, int]]:
    """Return row and number of each pair that the steps of a block use, once each, sorted."""
    train = job.train
    stop = min(start + train.rollout.cached.refresh_every, train.steps)
    positions = range(start * train.batch_size, stop * train.batch_size)
    return sorted({pair_of(job, prompts, position) for position in positions})


def _generate(
    job: TrainJob,
    prompts: TrainingPrompts,
    model: BaseModel,
    keys: list[tuple[int, int]],
    *,
    rank: int,
    world: int,
) -> Tensor:
    """Generate the latents (P, S, C) of pairs, on the CPU, in turns; see `samples.generate_samples`."""
    pairs, device = _pairs(prompts), model.device
    mine, at_once = own_turns(len(keys), rank, world), images_per_call(job.train, world)
    images = []
    with tf32(enabled=job.train.compute.tf32):
        for first in range(0, len(mine), at_once):
            some = [keys[place] for place in mine[first : first + at_once]]
            noise = [
                pair_noise(model.latent_shape, pairs.seed, prompts.texts[row], number) for row, number in some
            ]
            eps = noise_of(torch.stack(noise).to(device), job.train)
            condition = prompts.condition.batch([row for row, _ in some], device)
            images.append(roll_out(model, eps, condition, job.train.rollout, job.train))
    return gather_turns(torch.cat(images), len(keys), world, device).cpu()


def _read(job: TrainJob, start: int) -> Tensor:
    file = _file(job, start)
    try:
        images: Tensor = load(file.read_bytes())[LATENTS]
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise ArtifactError(
            f"{file}, the images from which the steps after step {start} start, is missing or damaged "
            f"({type(error).__name__}): delete the directory {job.state} and run the same command again, which trains from step 0"
        ) from error
    return images


def _remove_older(job: TrainJob, start: int) -> None:
    """Remove the files of blocks from which no run resumes: those before the newest checkpoints, with one in the making."""
    done = [step for step in checkpoint_steps(job.train) if step <= start]
    oldest = (
        done[-job.resources.keep_checkpoints - 1 :][:1] if len(done) > job.resources.keep_checkpoints else []
    )
    for step in oldest:
        needed = _file(job, block_start(job.train, step + 1)).name
        directory = job.state / REFRESHED
        for name in directory.names():
            if name < needed:
                (directory / name).delete()


def _file(job: TrainJob, start: int) -> Location:
    return job.state / REFRESHED / f"{start:06d}.safetensors"


def _pairs(prompts: TrainingPrompts) -> Pairs:
    assert prompts.pairs is not None, "only cached rollouts are refreshed"
    return prompts.pairs
