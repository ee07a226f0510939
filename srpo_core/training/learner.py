"""One training step: loss terms, gradients, checks, AdamW. It needs no files, and the batch is given."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from srpo_core.algorithm.method import LossTerm, Method, TrainBatch
from srpo_core.config import TrainSettings
from srpo_core.errors import DivergenceError
from srpo_core.models.sharding import whole
from srpo_core.protocols import BaseModel, RewardModel
from srpo_core.training.micro_batches import micro_batches, num_micro_batches
from srpo_core.training.schedule import learning_rate, set_learning_rate, varies


@dataclass
class PartOfStep:
    """The terms of a micro-batch; each iteration yields those of one update.

    weight: factor of losses and rewards, 0 for samples that are not to count; another_update: whether terms are left.
    """

    terms: Iterator[LossTerm]
    weight: float
    another_update: bool = False

    def __iter__(self) -> Iterator[LossTerm]:
        """Yield the terms of the next update."""
        self.another_update = False
        for term in self.terms:
            yield term
            if term.ends_update:
                self.another_update = True
                return


@dataclass(frozen=True)
class Learner:
    """Model, reward, optimizer and method of an optimizer step."""

    model: BaseModel
    reward: RewardModel
    optimizer: torch.optim.Optimizer
    settings: TrainSettings
    method: Method

    def step(self, batch: TrainBatch, step: int, *, world: int = 1) -> dict[str, float]:
        """Make one step on this rank's share of the global batch: one update of the weights, or several if the method asks.

        Returns the metrics of the global batch, equal on every rank, averaged over the updates.

        Raises:
            DivergenceError: a figure is not finite; the weights are those before this update.
        """
        parts = self._parts(batch, num_micro_batches(self.settings, world))
        made: list[dict[str, float]] = []
        while not made or parts[0].another_update:
            self.optimizer.zero_grad(set_to_none=True)
            made.append(self._update(self._backward(parts), step, world=world))
        return {name: fmean(metrics[name] for metrics in made) for name in made[0]}

    def _update(self, figures: dict[str, Tensor], step: int, *, world: int) -> dict[str, float]:
        """Change the weights by the gradients; `figures` are summed over the ranks in place. Returns the metrics."""
        if world > 1:
            sum_over_ranks(figures.values(), self.model.transformer)
        transformer, largest = self.model.transformer, self.settings.optimizer.max_grad_norm
        gradients = [p.grad for p in transformer.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        figures["grad_norm"] = whole(norm)
        metrics = read_scalars(figures)
        require_finite(
            metrics, transformer, step
        )  # before clipping, which would spread one NaN over all gradients
        torch.nn.utils.clip_grads_with_norm_(transformer.parameters(), largest, norm)
        rate = learning_rate(self.settings, step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        return {**metrics, "learning_rate": rate} if varies(self.settings.optimizer.schedule) else metrics

    def _parts(self, batch: TrainBatch, count: int) -> list["PartOfStep"]:
        """Return `count` micro-batches, of which nothing is computed yet."""
        return [
            PartOfStep(self.method(self.model, self.reward, part, self.settings), weight)
            for part, weight in micro_batches(batch, count)
        ]

    def _backward(self, parts: Iterable["PartOfStep"]) -> dict[str, Tensor]:
        """Add up the gradients of an update over all micro-batches; returns the sums of their figures."""
        sums: dict[str, Tensor] = {}
        for part in parts:
            for name, value in backward_terms(part, self.settings.batch_size, weight=part.weight).items():
                sums[name] = sums[name] + value if name in sums else value
        return sums


def read_scalars(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Copy scalars to the host.

    This is the only place of a step where the host waits for its device, and so for other ranks. The watchdog
    recognizes a waiting rank by this function's name.
    """
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def backward_terms(terms: Iterable[LossTerm], batch_size: int, *, weight: float = 1.0) -> dict[str, Tensor]:
    """Run backward on each loss term in turn.

    weight: factor of losses and rewards, 0 for samples that are not to count.

    Returns scalars, summed over these samples and divided by the size of the global batch: `loss`, and
    `reward_<name>`, averaged over the terms that have this reward.
    """
    losses, rewards = [], dict[str, list[Tensor]]()
    for term in terms:
        loss = weight * term.losses.sum() / batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        for name, values in term.rewards.items():
            rewards.setdefault(name, []).append(weight * values.sum() / batch_size)
    means = {f"reward_{name}": torch.stack(values).mean() for name, values in rewards.items()}
    return {"loss": torch.stack(losses).sum(), **means}


def sum_over_ranks(figures: Iterable[Tensor], transformer: torch.nn.Module) -> None:
    """Sum figures over all ranks, in place, and the gradients that FSDP2 has not summed already."""
    for value in figures:
        dist.all_reduce(value)
    for parameter in transformer.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)


def require_finite(metrics: Mapping[str, float], transformer: torch.nn.Module, step: int) -> None:
    """Require that loss, rewards and total gradient norm of a step are finite.

    Raises:
        DivergenceError: one is not; the error names the step, the figure and the first gradient that is not finite.
    """
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergenceError(
            f"step {step}: {', '.join(bad)}; gradient of {_first_not_finite(transformer)} is not finite. This "
            "update has not been made, and earlier checkpoints are kept: lower train.optimizer.learning_rate"
        )


def adamw(transformer: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return AdamW over the transformer's parameters that require a gradient, with its moments in 32 or 8 bits."""
    options = settings.optimizer
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {
        "lr": options.learning_rate,
        "weight_decay": options.weight_decay,
        "betas": options.betas,
        "eps": options.eps,
    }
    if options.kind == "adamw":
        return torch.optim.AdamW(trained, fused=settings.compute.fused_optimizer, **common)
    from bitsandbytes.optim import AdamW8bit

    eight_bit: torch.optim.Optimizer = AdamW8bit(trained, **common)
    return eight_bit


def _first_not_finite(module: torch.nn.Module) -> str:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return "no single parameter"
