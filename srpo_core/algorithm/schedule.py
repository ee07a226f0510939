"""Noise levels: sigma = 1 is pure noise, sigma = 0 the image (rectified flow)."""

import torch
from torch import Tensor


def shifted_sigmas(steps: int, shift: float) -> Tensor:
    """The descending schedule sigma_i = shift*u / (1 + (shift-1)*u) at u = 1 - i/steps, (steps+1,) from 1 to 0."""
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def training_grid(schedule_steps: int, shift: float, first: int, last: int, points: int) -> Tensor:
    """The N noise levels that training may use, (points,), linear in sigma and descending.

    They reach from the schedule's sigma at `first` (noisiest) to that at `last`.
    """
    sigmas = shifted_sigmas(schedule_steps, shift)
    return torch.linspace(float(sigmas[first]), float(sigmas[last]), points)
