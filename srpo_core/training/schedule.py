"""The learning rate of each step: a function of the settings and the step alone, so a checkpoint has no state of it."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from srpo_core.config import ScheduleSettings, TrainSettings

if TYPE_CHECKING:
    import torch


def learning_rate(train: TrainSettings, step: int) -> float:
    """Return the learning rate of a step from 1 to `train.steps`.

    Without a schedule it is `train.optimizer.learning_rate` to the bit. With a warm-up of w steps, step n of them has
    n / (w + 1) of it, and step w + 1 all of it. From there, `linear` and `cosine` fall to zero, which the step after
    the last one would have: no step of a run has a learning rate of zero.
    """
    schedule = train.optimizer.schedule
    if not varies(schedule):
        return train.optimizer.learning_rate
    return train.optimizer.learning_rate * _factor(schedule, train.steps)(step)


def varies(schedule: ScheduleSettings) -> bool:
    """Return whether the steps have different learning rates."""
    return schedule.name != "constant" or schedule.warmup_steps > 0


def set_learning_rate(optimizer: "torch.optim.Optimizer", rate: float) -> None:
    """Set the learning rate of all groups of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@lru_cache
def _factor(schedule: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """Return the multiplier of the learning rate by step, as diffusers defines it."""
    import torch
    from diffusers.optimization import get_scheduler

    # its scheduler would count steps; only its function of the step is used, so the optimizer is none that trains
    scheduler = get_scheduler(
        "constant_with_warmup" if schedule.name == "constant" else schedule.name,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=schedule.warmup_steps + 1,
        num_training_steps=steps + 1,
    )
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor
