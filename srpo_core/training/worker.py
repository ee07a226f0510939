"""The training loop of one worker: draw, align, step, save.

The global batch is cut over the workers by global sample index; every draw is keyed by that index
and gradients are summed over workers, so that the number of workers does not change what is learned.
"""

import json
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from srpo_core.algorithm import method_of
from srpo_core.algorithm.control_words import word_by_weight, word_in_turn
from srpo_core.algorithm.method import TrainBatch
from srpo_core.config import ControlWords, ModelSettings, ResourceSettings, ScorerSettings, TrainSettings
from srpo_core.errors import DivergenceError
from srpo_core.models import load_trainable
from srpo_core.models.embeddings import read_embeddings, read_latents
from srpo_core.protocols import BaseModel, Condition
from srpo_core.randomness import Draws, epoch_index, keyed_noise, keyed_share
from srpo_core.runtime.shared_files import Location, local_copy
from srpo_core.scorers import load_reward
from srpo_core.scorers.autocast import AutocastReward
from srpo_core.training.checkpoint import (
    CheckpointWriter,
    TrainState,
    open_checkpoint,
    restore,
    step_location,
)
from srpo_core.training.early_stop import BASE, Watch, over_trained
from srpo_core.training.learner import Learner, adamw
from srpo_core.training.watchdog import Watchdog

PROGRESS = "progress.jsonl"
SAMPLES = "samples"


@dataclass(frozen=True)
class TrainJob:
    """Everything that a worker needs to know.

    inputs: where the files lie that the settings and stages name by relative paths, with their digests when
    they must be fetched; state: where checkpoints, samples and progress go; resume: steps done by the
    checkpoint to go on from, 0 for none; attempt: a name of this start of the workers.
    """

    inputs: Location
    digests: Mapping[str, str]
    state: Location
    seed: int
    model: ModelSettings
    reward: ScorerSettings
    select_judge: ScorerSettings
    control_words: ControlWords
    train: TrainSettings
    resources: ResourceSettings
    resume: int
    attempt: str


@dataclass(frozen=True)
class Prompts:
    """The encoded training prompts; real: the packed latents of a real image of each, if any are used."""

    texts: Sequence[str]
    condition: Condition
    real: Tensor | None


class Worker:
    """One rank's model, reward, optimizer and share of the data."""

    def __init__(self, job: TrainJob, *, rank: int, world: int, device: torch.device) -> None:
        """Load everything and go on from the job's checkpoint. The working directory must be the inputs'."""
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.model = _load_model(job, device)
        optimizer = adamw(self.model.transformer, job.train)
        self.metrics: list[Mapping[str, float]] = []
        if job.resume:
            checkpoint = open_checkpoint(step_location(job.state, job.resume), check=False)
            restore(checkpoint, self.model.transformer, optimizer, rank=rank)
            self.metrics = list(checkpoint.metrics)
            self.model.weights_changed()
        reward = load_reward(job.reward).to(device)
        if job.train.compute.autocast:
            reward = AutocastReward(reward)
        self.learner = Learner(self.model, reward, optimizer, job.train, method_of(job.train))
        self.watch = Watch.over(
            job.train,
            seed=job.seed,
            reward=job.reward,
            judge=job.select_judge,
            words=job.control_words,
            device=device,
            world=world,
        )
        texts, _, condition = read_embeddings("train")
        self.prompts = Prompts(
            texts, condition, read_latents("train") if job.train.rollout.real_share else None
        )

    def run(self) -> None:
        """Train the steps that are not done yet; save checkpoints, samples and progress on the way."""
        job, writer = self.job, self._writer()
        with Watchdog(job.state, job.attempt, self.rank, self.world, job.resources.stall) as watchdog:
            try:
                self._run(writer, watchdog)
            except DivergenceError as diverged:
                # all ranks raise it alike, so that all are here to end what is being written
                try:
                    with watchdog.between_steps():
                        writer.finish()
                except Exception as error:
                    raise diverged from error
                raise
            with watchdog.between_steps():
                writer.finish()

    def _run(self, writer: CheckpointWriter, watchdog: Watchdog) -> None:
        # what the judge sees takes as long as it has images: no step, and no stall
        with watchdog.between_steps():
            of_base = {} if self.metrics else self._judged(BASE)
        for step in range(len(self.metrics) + 1, self.job.train.steps + 1):
            if over_trained(self.metrics, self.job.train.early_stop):
                break
            at_checkpoint = step in self.job.train.checkpoint_steps
            row = self.step(step) | of_base
            watchdog.step_done(step)
            if at_checkpoint:
                with watchdog.between_steps():
                    row |= self._judged()
            self.metrics.append(row)
            of_base = {}
            if self.rank == 0:
                self.job.state.append(PROGRESS, json.dumps({"step": step, **row}))
            if at_checkpoint:
                with watchdog.between_steps():
                    self._save(step, writer)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the global batch; returns its metrics, equal on every rank."""
        return self.learner.step(self.batch(step), step, world=self.world)

    def _judged(self, prefix: str = "") -> dict[str, float]:
        """What the judge says of the model now, if it is asked; equal on every rank."""
        if self.watch is None:
            return {}
        # drawn by all ranks, as each may hold a part of the model; the last bits may differ between them
        seen = self.watch.figures(self.model)
        figures = torch.tensor(list(seen.values()), dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.broadcast(figures, src=0)
        return {prefix + name: value for name, value in zip(seen, figures.tolist(), strict=True)}

    def batch(self, step: int) -> TrainBatch:
        """This rank's share of the batch of a step, every draw keyed by the global sample index."""
        job, size = self.job, self.job.train.batch_size
        samples = range(self.rank, size, self.world)
        rows = [epoch_index((step - 1) * size + i, len(self.prompts.texts), job.seed) for i in samples]
        keys = [("noise", step, i) if job.train.noise == "per_sample" else ("noise", step) for i in samples]
        noise = [keyed_noise(self.model.latent_shape, job.seed, *key) for key in keys]
        return TrainBatch(
            prompts=[self.prompts.texts[row] for row in rows],
            condition=self.prompts.condition[rows].to(self.device),
            noise=torch.stack(noise).to(self.device),
            draws=Draws(job.seed, step, samples),
            real=self._real_images(step, samples, rows),
            wanted=self._word(job.control_words.pair.wanted, "wanted", step),
            unwanted=self._word(job.control_words.pair.unwanted, "unwanted", step),
        )

    def _word(self, weights: Mapping[str, float], side: str, step: int) -> str:
        if self.job.control_words.choice == "in_turn":
            return word_in_turn(weights, step)
        return word_by_weight(weights, self.job.seed, side, step)

    def _real_images(self, step: int, samples: Iterable[int], rows: Iterable[int]) -> dict[int, Tensor]:
        """By place in the batch, the latents of the samples that start from a real image."""
        real, share = self.prompts.real, self.job.train.rollout.real_share
        if real is None:
            return {}
        return {
            place: real[row].to(self.device)
            for place, (i, row) in enumerate(zip(samples, rows, strict=True))
            if keyed_share(self.job.seed, "source", step, i) < share
        }

    def _writer(self) -> CheckpointWriter:
        group: Any = None
        if self.world > 1:
            # of its own: a background write must not meet the training's collectives
            group = dist.new_group(backend="gloo")
        return CheckpointWriter(
            self.job.state,
            attempt=self.job.attempt,
            keep=self.job.resources.keep_checkpoints,
            background=self.job.resources.async_checkpoints,
            rank=self.rank,
            world=self.world,
            group=group,
        )

    def _save(self, step: int, writer: CheckpointWriter) -> None:
        images = generate_samples(
            self.model, self.job, self.device
        )  # by all ranks: each may hold a part of the model
        if self.rank == 0:
            (self.job.state / SAMPLES / f"step-{step:06d}.png").write(_png(images))
        used = step * self.job.train.batch_size
        epoch, place = divmod(used, len(self.prompts.texts))
        cursor = {"images": used, "epoch": epoch, "place": place}
        writer.save(TrainState(self.model.transformer, self.learner.optimizer, step, cursor, self.metrics))


def generate_samples(model: BaseModel, job: TrainJob, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] of the first training prompts, always from the same noise."""
    texts, _, condition = read_embeddings("train")
    count = min(job.train.sample_prompts, len(texts))
    noise = torch.stack([keyed_noise(model.latent_shape, job.seed, "sample", text) for text in texts[:count]])
    return model.generate(
        condition[slice(count)].to(device),
        noise.to(device),
        num_inference_steps=job.train.rollout.num_inference_steps,
        guidance_scale=job.train.rollout.guidance_scale,
    )


def train_worker(job: TrainJob) -> None:
    """Entry of one Ray Train worker."""
    from ray import train

    from srpo_core.runtime.processes import die_with_parent

    die_with_parent(signal.SIGKILL)  # one that waits for another rank would not see a polite one
    torch.set_num_threads(job.resources.threads_per_worker)
    context = train.get_context()
    with ExitStack() as stack:
        # Ray starts workers in a directory of its own
        os.chdir(stack.enter_context(local_copy(job.inputs, job.digests)))
        stack.callback(os.chdir, "/")
        worker = Worker(
            job,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            device=train.torch.get_device(),
        )
        worker.run()


def _png(images: Tensor) -> bytes:
    """Images (B, 3, H, W) side by side as one PNG."""
    from io import BytesIO

    from torchvision.utils import save_image

    file = BytesIO()
    save_image(images, file, format="png", nrow=len(images))
    return file.getvalue()


def _load_model(job: TrainJob, device: torch.device) -> BaseModel:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = None
    if job.resources.shard and dist.is_initialized():
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model = load_trainable(job.model, job.train, seed=job.seed, device=device, mesh=mesh)
    model.transformer.train()
    return model
