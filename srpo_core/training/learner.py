"""What one optimizer step is: loss terms, gradients, guards, AdamW. Knows nothing of files, ranks' shares or draws."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from srpo_core.algorithm.method import LossTerm, Method, TrainBatch
from srpo_core.config import TrainSettings
from srpo_core.errors import DivergenceError
from srpo_core.models.sharding import whole
from srpo_core.protocols import BaseModel, RewardModel


@dataclass(frozen=True)
class Learner:
    """What a step changes, and how: knows nothing of files, ranks or draws."""

    model: BaseModel
    reward: RewardModel
    optimizer: torch.optim.Optimizer
    settings: TrainSettings
    method: Method

    def step(self, batch: TrainBatch, step: int, *, world: int = 1) -> dict[str, float]:
        """One optimizer step on this rank's share of the global batch; its metrics are equal on every rank."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.method(self.model, self.reward, batch, self.settings)
        figures = backward_terms(terms, self.settings.batch_size)
        if world > 1:
            sum_over_ranks(figures.values(), self.model.transformer)
        transformer, largest = self.model.transformer, self.settings.optimizer.max_grad_norm
        gradients = [p.grad for p in transformer.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        figures["grad_norm"] = whole(norm)
        metrics = synchronised(figures)  # nothing that is not finite may reach the weights
        require_finite(metrics, transformer, step)  # before clipping spreads one NaN over all of them
        torch.nn.utils.clip_grads_with_norm_(transformer.parameters(), largest, norm)
        self.optimizer.step()
        self.model.weights_changed()
        return metrics


def synchronised(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers: the one place of a step where the host waits for its device, and so for other ranks.

    The watchdog knows it by its name: who stands here waits.
    """
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def backward_terms(terms: Iterable[LossTerm], batch_size: int) -> dict[str, Tensor]:
    """Run backward on each loss term in turn; sums over this rank's samples, divided by the global batch.

    Returns `loss` and, averaged over the terms that know it, `reward_<name>`; scalars.
    """
    losses, rewards = [], dict[str, list[Tensor]]()
    for term in terms:
        loss = term.losses.sum() / batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        for name, values in term.rewards.items():
            rewards.setdefault(name, []).append(values.sum() / batch_size)
    means = {f"reward_{name}": torch.stack(values).mean() for name, values in rewards.items()}
    return {"loss": torch.stack(losses).sum(), **means}


def sum_over_ranks(figures: Iterable[Tensor], transformer: torch.nn.Module) -> None:
    """Add up figures over all ranks, in place, and gradients where FSDP has not summed them already."""
    for value in figures:
        dist.all_reduce(value)
    for parameter in transformer.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)


def require_finite(metrics: Mapping[str, float], transformer: torch.nn.Module, step: int) -> None:
    """Stop before an optimizer step whose loss, rewards or total gradient norm are not finite.

    Raises:
        DivergenceError: names the step, the figures at fault and the first gradient that is not finite.
    """
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergenceError(
            f"step {step}: {', '.join(bad)}; gradient of {_first_not_finite(transformer)} is not finite. The weights "
            "were not changed by it, and the checkpoints before it are kept: lower train.optimizer.learning_rate"
        )


def adamw(transformer: torch.nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the transformer's parameters that ask for a gradient."""
    options = settings.optimizer
    return torch.optim.AdamW(
        [parameter for parameter in transformer.parameters() if parameter.requires_grad],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        betas=options.betas,
        eps=options.eps,
        fused=settings.compute.fused_optimizer,
    )


def _first_not_finite(module: torch.nn.Module) -> str:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return "no single parameter"
