"""The training loop of one worker: draw, align, step, save.

The global batch is cut over the workers by global sample index; every draw is keyed by that index
and gradients are summed over workers, so that the number of workers does not change what is learned.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from srpo_core.algorithm.control_words import word_by_weight, word_in_turn
from srpo_core.algorithm.method import TrainBatch
from srpo_core.algorithm.noise import Draws, epoch_index, keyed_noise, keyed_share
from srpo_core.checkpoint import Checkpoint, load_optimizer, newest_checkpoint, save_checkpoint
from srpo_core.config import ControlWords, ModelSettings, ScorerSettings, TrainSettings
from srpo_core.early_stop import BASE, Watch, over_trained
from srpo_core.learner import Learner, adamw, method_of
from srpo_core.models import load_base, load_transformer
from srpo_core.models.embeddings import read_embeddings, read_latents
from srpo_core.protocols import BaseModel, Condition
from srpo_core.scorers import load_reward
from srpo_core.scorers.autocast import AutocastReward

PROGRESS = "progress.jsonl"
SAMPLES = "samples"


@dataclass(frozen=True)
class TrainJob:
    """Everything that a worker needs to know.

    inputs: absolute directory in which the settings' relative paths hold; state: absolute directory
    of checkpoints, samples and progress.
    """

    inputs: Path
    state: Path
    seed: int
    model: ModelSettings
    reward: ScorerSettings
    select_judge: ScorerSettings
    control_words: ControlWords
    train: TrainSettings
    threads: int


@dataclass(frozen=True)
class Prompts:
    """The encoded training prompts; real: the packed latents of a real picture of each, if any are used."""

    texts: Sequence[str]
    condition: Condition
    real: Tensor | None


class Worker:
    """One rank's model, reward, optimizer and share of the data."""

    def __init__(self, job: TrainJob, *, rank: int, world: int, device: torch.device) -> None:
        """Load everything and go on from the newest intact checkpoint."""
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.checkpoint = newest_checkpoint(job.state, every=job.train.checkpoint_every)
        self.model = _load_model(job, self.checkpoint, device)
        optimizer = adamw(self.model.transformer, job.train)
        if self.checkpoint:
            load_optimizer(self.checkpoint, self.model.transformer, optimizer)
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
        )
        texts, _, condition = read_embeddings("train")
        self.prompts = Prompts(
            texts, condition, read_latents("train") if job.train.rollout.real_share else None
        )

    def run(self) -> None:
        """Train the steps that are not done yet; rank 0 saves checkpoints, samples and progress."""
        metrics = list(self.checkpoint.metrics) if self.checkpoint else []
        of_base = {} if metrics else self._judged(BASE)
        for step in range(len(metrics) + 1, self.job.train.steps + 1):
            if over_trained(metrics, self.job.train.early_stop):
                return
            at_checkpoint = step % self.job.train.checkpoint_every == 0
            metrics.append(self.step(step) | of_base | (self._judged() if at_checkpoint else {}))
            of_base = {}
            if self.rank == 0:
                self._tell({"step": step, **metrics[-1]})
                if at_checkpoint:
                    self._save(step, metrics)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the global batch; returns its metrics, equal on every rank."""
        return self.learner.step(self.batch(step), step, world=self.world)

    def _judged(self, prefix: str = "") -> dict[str, float]:
        """What the judge says of the model now, if it is asked; equal on every rank."""
        if self.watch is None:
            return {}
        # drawn by all ranks, as each may hold a part of the model; the last bits may differ between them
        figure = torch.tensor(self.watch.figure(self.model), dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.broadcast(figure, src=0)
        return {prefix + self.watch.rule.metric: float(figure)}

    def batch(self, step: int) -> TrainBatch:
        """This rank's share of the batch of a step, every draw keyed by the global sample index."""
        job, size = self.job, self.job.train.batch_size
        samples = range(self.rank, size, self.world)
        rows = [epoch_index((step - 1) * size + i, len(self.prompts.texts), job.seed) for i in samples]
        keys = [("noise", step, i) if job.train.noise == "per_sample" else ("noise", step) for i in samples]
        noise = [keyed_noise(self.model.latent_shape, job.seed, *key) for key in keys]
        return TrainBatch(
            prompts=[self.prompts.texts[row] for row in rows],
            condition=_to(self.prompts.condition[rows], self.device),
            noise=torch.stack(noise).to(self.device),
            draws=Draws(job.seed, step, samples),
            real=self._real_images(step, samples, rows),
            wanted=self._word(job.control_words.pair.wanted, "wanted", step),
            unwanted=self._word(job.control_words.pair.unwanted, "unwanted", step),
        )

    def _word(self, weights: Mapping[str, float], side: str, step: int) -> str:
        if self.job.control_words.draw == "in_turn":
            return word_in_turn(weights, step)
        return word_by_weight(weights, self.job.seed, side, step)

    def _real_images(self, step: int, samples: Iterable[int], rows: Iterable[int]) -> dict[int, Tensor]:
        """By place in the batch, the latents of the samples that start from a real picture."""
        real, share = self.prompts.real, self.job.train.rollout.real_share
        if real is None:
            return {}
        return {
            place: real[row].to(self.device)
            for place, (i, row) in enumerate(zip(samples, rows, strict=True))
            if keyed_share(self.job.seed, "source", step, i) < share
        }

    def _tell(self, row: Mapping[str, float]) -> None:
        with (self.job.state / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self, step: int, metrics: Sequence[Mapping[str, float]]) -> None:
        save_samples(self.model, self.job, self.job.state / SAMPLES / f"step-{step:06d}.png", self.device)
        save_checkpoint(self.job.state, step, self.model.transformer, self.learner.optimizer, metrics)


def save_samples(model: BaseModel, job: TrainJob, path: Path, device: torch.device) -> None:
    """Draw the first training prompts, always from the same noise, side by side as one PNG."""
    from torchvision.utils import save_image

    texts, _, condition = read_embeddings("train")
    count = min(job.train.sample_prompts, len(texts))
    noise = torch.stack([keyed_noise(model.latent_shape, job.seed, "sample", text) for text in texts[:count]])
    images = model.draw(
        _to(condition[slice(count)], device),
        noise.to(device),
        steps=job.train.rollout.steps,
        guidance=job.train.rollout.guidance,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(images, path, nrow=count)


def train_worker(job: TrainJob) -> None:
    """Entry of one Ray Train worker."""
    from ray import train

    os.chdir(job.inputs)  # Ray starts workers in a directory of its own
    torch.set_num_threads(job.threads)
    context = train.get_context()
    device = train.torch.get_device()
    Worker(job, rank=context.get_world_rank(), world=context.get_world_size(), device=device).run()
    if context.get_world_size() > 1:
        dist.barrier()  # rank 0 may still be saving


def _load_model(job: TrainJob, checkpoint: Checkpoint | None, device: torch.device) -> BaseModel:
    model = load_base(job.model)
    if checkpoint:
        weights = load_transformer(job.model, checkpoint.transformer)
        model.transformer.load_state_dict(weights.state_dict())
    model.transformer.train()
    return model.to(device).prepare(job.train.compute)


def _to(condition: Condition, device: torch.device) -> Condition:
    return Condition(condition.prompt_embeds.to(device), condition.pooled.to(device))
