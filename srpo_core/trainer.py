"""The training loop of one worker: draw, align, step, save.

The global batch is cut over the workers by global sample index; every draw is keyed by that index
and gradients are summed over workers, so that the number of workers does not change what is learned.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.direct_align import EDGE
from srpo_core.algorithm.noise import epoch_index, keyed_integer, keyed_noise
from srpo_core.algorithm.srpo import LossTerm, Method, TrainBatch
from srpo_core.checkpoint import Checkpoint, load_optimizer, newest_checkpoint, save_checkpoint
from srpo_core.config import ControlWords, ModelSettings, ScorerSettings, TrainSettings
from srpo_core.errors import DivergenceError, pick
from srpo_core.models import load_base, load_transformer
from srpo_core.models.embeddings import read_embeddings
from srpo_core.protocols import BaseModel, Condition, RewardModel
from srpo_core.scorers import load_reward

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
    control_words: ControlWords
    train: TrainSettings
    threads: int


@dataclass(frozen=True)
class Prompts:
    """The encoded prompts of a split."""

    texts: Sequence[str]
    condition: Condition


class Worker:
    """One rank's model, reward, optimizer and share of the data."""

    def __init__(self, job: TrainJob, *, rank: int, world: int, device: torch.device) -> None:
        """Load everything and go on from the newest intact checkpoint."""
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.checkpoint = newest_checkpoint(job.state, every=job.train.checkpoint_every)
        self.model = _load_model(job, self.checkpoint, device)
        self.reward: RewardModel = load_reward(job.reward).to(device)
        self.optimizer = adamw(self.model.transformer, job.train)
        if self.checkpoint:
            load_optimizer(self.checkpoint, self.model.transformer, self.optimizer)
        texts, _, condition = read_embeddings("train")
        self.prompts = Prompts(texts, condition)
        self.method: Method = pick(METHODS, job.train.method, "method")

    def run(self) -> None:
        """Train the steps that are not done yet; rank 0 saves checkpoints, samples and progress."""
        metrics = list(self.checkpoint.metrics) if self.checkpoint else []
        for step in range(len(metrics) + 1, self.job.train.steps + 1):
            metrics.append(self.step(step))
            if self.rank == 0:
                self._tell({"step": step, **metrics[-1]})
                if step % self.job.train.checkpoint_every == 0:
                    self._save(step, metrics)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step over the global batch; returns its metrics, equal on every rank."""
        batch = self.batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        figures = backward_terms(
            self.method(self.model, self.reward, batch, self.job.train), self.job.train.batch_size
        )
        self._sum_over_ranks(figures)
        norm = clip_gradients(self.model.transformer, self.job.train.optimizer.max_grad_norm, step)
        self.optimizer.step()
        return {**{name: float(value) for name, value in figures.items()}, "grad_norm": norm}

    def batch(self, step: int) -> TrainBatch:
        """This rank's share of the batch of a step, every draw keyed by the global sample index."""
        job, size = self.job, self.job.train.batch_size
        samples = range(self.rank, size, self.world)
        rows = [epoch_index((step - 1) * size + i, len(self.prompts.texts), job.seed) for i in samples]
        noise = [keyed_noise(self.model.latent_shape, job.seed, "noise", step, i) for i in samples]
        last = job.train.direct_align.grid - EDGE
        return TrainBatch(
            prompts=[self.prompts.texts[row] for row in rows],
            condition=_to(self.prompts.condition[rows], self.device),
            noise=torch.stack(noise).to(self.device),
            midpoints=[keyed_integer(EDGE, last, job.seed, "midpoint", step, i) for i in samples],
            wanted=_in_turn(job.control_words.wanted, step),
            unwanted=_in_turn(job.control_words.unwanted, step),
        )

    def _sum_over_ranks(self, figures: dict[str, Tensor]) -> None:
        if self.world == 1:
            return
        for value in figures.values():
            dist.all_reduce(value)
        for parameter in self.model.transformer.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def _tell(self, row: Mapping[str, float]) -> None:
        with (self.job.state / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self, step: int, metrics: Sequence[Mapping[str, float]]) -> None:
        save_samples(self.model, self.job, self.job.state / SAMPLES / f"step-{step:06d}.png", self.device)
        save_checkpoint(self.job.state, step, self.model.transformer, self.optimizer, metrics)


def backward_terms(terms: Any, batch_size: int) -> dict[str, Tensor]:
    """Run backward on each loss term in turn; sums over this rank's samples, divided by the global batch.

    Returns `loss` and `reward_<term>`, scalars.
    """
    figures: dict[str, Tensor] = {}
    term: LossTerm
    for term in terms:
        loss = term.losses.sum() / batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        figures["loss"] = figures.get("loss", torch.zeros_like(loss)) + loss.detach()
        figures[f"reward_{term.name}"] = term.rewards.sum() / batch_size
    return figures


def clip_gradients(transformer: torch.nn.Module, max_norm: float, step: int) -> float:
    """Clip the total gradient norm and return what it was.

    Raises:
        DivergenceError: the norm is not finite; names the step and the first tensor at fault.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(transformer.parameters(), max_norm))
    if not math.isfinite(norm):
        raise DivergenceError(
            f"step {step}: gradient of {_first_not_finite(transformer)} is not finite; the checkpoints before it "
            "are kept: lower train.optimizer.learning_rate"
        )
    return norm


def adamw(transformer: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over all of the transformer's parameters."""
    options = settings.optimizer
    return torch.optim.AdamW(
        transformer.parameters(),
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        betas=options.betas,
        eps=options.eps,
    )


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
    return model.to(device)


def _in_turn(words: Sequence[str], step: int) -> str:
    return words[step % len(words)]


def _to(condition: Condition, device: torch.device) -> Condition:
    return Condition(condition.prompt_embeds.to(device), condition.pooled.to(device))


def _first_not_finite(module: torch.nn.Module) -> str:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return "no single parameter"
