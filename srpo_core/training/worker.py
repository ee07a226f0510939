"""The training loop of one worker: rollout, alignment, optimizer step, checkpoint.

The global batch is sharded across the workers by global sample index. Every random number is keyed by that index,
and gradients are summed over the workers, so the number of workers does not change what is learned.
"""

import json
import os
import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import distributed as dist

from srpo_core.algorithm import method_of
from srpo_core.algorithm.method import TrainBatch
from srpo_core.algorithm.rollout import real_share
from srpo_core.artifacts import step_name
from srpo_core.errors import DivergenceError
from srpo_core.models import load_trainable
from srpo_core.models.compiling import uncompiled_calls_reported
from srpo_core.models.precision import tf32
from srpo_core.models.sharding import mesh_of, not_grouped
from srpo_core.protocols import BaseModel
from srpo_core.runtime.shared_files import local_copy
from srpo_core.scorers import load_rewards
from srpo_core.scorers.autocast import with_autocast
from srpo_core.training.average import WeightAverage
from srpo_core.training.batch import image_size, read_training_prompts, step_batch
from srpo_core.training.checkpoint import open_checkpoint, restore, step_location
from srpo_core.training.checkpoint_writer import CheckpointWriter
from srpo_core.training.early_stop import Evaluation, alarm_reason, curve_of
from srpo_core.training.evaluator import make_evaluator
from srpo_core.training.job import PROGRESS, SAMPLES, TrainJob
from srpo_core.training.learner import Learner, adamw
from srpo_core.training.refresh import begins_block, block_start, with_newer_pairs
from srpo_core.training.samples import generate_samples, png_row
from srpo_core.training.state import TrainState
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.watchdog import Watchdog, collective_timeout


class Worker:
    """One rank's model, reward, optimizer and share of the data."""

    def __init__(self, job: TrainJob, *, rank: int, world: int, device: torch.device) -> None:
        """Load everything and resume from the job's checkpoint, if any.

        The working directory must have the files of the job's inputs.
        """
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.model = _load_model(job, device)
        optimizer = adamw(self.model.transformer, job.train)
        self.metrics: list[Mapping[str, float]] = []
        self.evaluations: list[Evaluation] = []
        self.average = WeightAverage(self.model.transformer, job.train.ema) if job.train.ema else None
        reward = load_rewards(job.rewards).to(device)
        # before the weights of a checkpoint are restored: its images are compared with the base's
        self.evaluator = make_evaluator(job, self.model, reward=reward, device=device, rank=rank, world=world)
        if job.resume:
            checkpoint = open_checkpoint(step_location(job.state, job.resume), verify=False)
            averages = self.average.tensors() if self.average else None
            restore(checkpoint, self.model.transformer, optimizer, averages)
            self.metrics = list(checkpoint.metrics)
            self.evaluations = [Evaluation.from_json(one) for one in checkpoint.evaluations]
        if job.train.compute.autocast:
            reward = with_autocast(reward)
        self.learner = Learner(self.model, reward, optimizer, job.train, method_of(job.train))
        self.prompts = read_training_prompts(
            real_images=real_share(job.train.rollout) > 0, cached=job.train.rollout.source == "cached"
        )

    def run(self) -> None:
        """Train the remaining steps; save checkpoints, samples and progress on the way."""
        job, writer = self.job, self._writer()
        if note := not_grouped(job.resources, self.world):
            self._note(note)
        stall = job.resources.stall
        with (
            uncompiled_calls_reported(self._note),
            Watchdog(job.state, job.attempt, self.rank, self.world, stall) as watchdog,
        ):
            try:
                self._run(writer, watchdog)
            except DivergenceError as diverged:
                # every rank raises it, so all of them can finish the checkpoint that is being written
                try:
                    with watchdog.between_steps():
                        writer.finish()
                except Exception as error:
                    raise diverged from error
                raise
            with watchdog.between_steps():
                writer.finish()

    def _run(self, writer: CheckpointWriter, watchdog: Watchdog) -> None:
        planned, first = len(checkpoint_steps(self.job.train)), len(self.metrics) + 1
        for step in range(first, self.job.train.steps + 1):
            if alarm_reason(self.evaluations, self.job.train.early_stop, planned):
                break
            if block_start(self.job.train, step) and (step == first or begins_block(self.job.train, step)):
                with watchdog.between_steps():
                    self.refresh(step)
            at_checkpoint = step in checkpoint_steps(self.job.train)
            row = self.step(step)
            watchdog.step_done(step)
            self.metrics.append(row)
            shown = {"step": step, **row}
            if at_checkpoint and self.evaluator is not None:
                # an evaluation takes longer than a step, depending on its number of images: it is no stall
                with watchdog.between_steps(), self._released_weights():
                    self.evaluations.append(self.evaluator.evaluate(self.model, step))
                shown["alarm"] = float(curve_of(self.evaluations, planned).total[-1])
            if self.rank == 0:
                self.job.state.append(PROGRESS, json.dumps(shown))
            if at_checkpoint:
                with watchdog.between_steps():
                    self._save(step, writer)

    def _note(self, text: str) -> None:
        """Report something that is no figure; the stage's process logs it as a warning."""
        if self.rank == 0:
            self.job.state.append(PROGRESS, json.dumps({"note": text}))

    def refresh(self, step: int) -> None:
        """Generate anew, or read, the cached pairs of the steps from `step` on, if `train.rollout.cached` asks for it."""
        if block_start(self.job.train, step):
            self.prompts = with_newer_pairs(
                self.job, self.prompts, self.model, step, rank=self.rank, world=self.world
            )

    def step(self, step: int) -> dict[str, float]:
        """Make one optimizer step over the global batch; return its metrics, equal on every rank."""
        with self._sized(step), tf32(enabled=self.job.train.compute.tf32):
            metrics = self.learner.step(self.batch(step), step, world=self.world)
        if self.average:
            self.average.update(step)
        return metrics

    def _released_weights(self) -> AbstractContextManager[None]:
        """Within the context, the model has the weights that a checkpoint releases."""
        return self.average.applied() if self.average else nullcontext()

    def batch(self, step: int) -> TrainBatch:
        """Return this rank's share of the global batch of a step."""
        with self._sized(step):
            return step_batch(
                self.job,
                self.prompts,
                step,
                range(self.rank, self.job.train.batch_size, self.world),
                latent_shape=self.model.latent_shape,
                device=self.device,
            )

    def _sized(self, step: int) -> AbstractContextManager[None]:
        """Within the context, the model works on images of the step's size."""
        size = image_size(self.job.train, self.job.seed, step)
        return self.model.sized(*size) if size else nullcontext()

    def _writer(self) -> CheckpointWriter:
        group: Any = None
        if self.world > 1:
            # a separate group: collectives of a background write must not mix with those of training
            group = dist.new_group(backend="gloo", timeout=collective_timeout(self.job.resources.stall))
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
        with self._released_weights(), tf32(enabled=self.job.train.compute.tf32):
            images = generate_samples(
                self.model, self.job, self.prompts, self.device, rank=self.rank, world=self.world
            )
        if self.rank == 0:
            (self.job.state / SAMPLES / f"{step_name(step)}.png").write(png_row(images))
        writer.save(
            TrainState(
                self.model.transformer,
                self.learner.optimizer,
                step,
                self.metrics,
                [one.to_json() for one in self.evaluations],
                self.average.tensors() if self.average else {},
            )
        )


def train_worker(job: TrainJob) -> None:
    """Run one Ray Train worker."""
    from ray import train

    from srpo_core.runtime.processes import die_with_parent

    die_with_parent(signal.SIGKILL)  # SIGTERM would not reach Python code while it waits for another rank
    torch.set_num_threads(job.resources.threads_per_worker)
    context = train.get_context()
    with ExitStack() as stack:
        # Ray starts workers in its own directory
        os.chdir(stack.enter_context(local_copy(job.inputs, job.digests)))
        stack.callback(os.chdir, "/")
        worker = Worker(
            job,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            device=train.torch.get_device(),
        )
        worker.run()


def _load_model(job: TrainJob, device: torch.device) -> BaseModel:
    mesh = mesh_of(job.resources, dist.get_world_size(), device.type) if dist.is_initialized() else None
    if mesh is not None:
        for group in mesh.get_all_groups():  # new groups have torch's timeout, for NCCL ten minutes
            dist.set_timeout(collective_timeout(job.resources.stall), group)
    model = load_trainable(job.model, job.train, seed=job.seed, device=device, mesh=mesh)
    model.transformer.train()
    return model
