"""Noise levels of rectified flow: sigma = 1 is pure noise, sigma = 0 is the image."""

import torch
from torch import Tensor


def shifted_sigmas(steps: int, shift: float) -> Tensor:
    """Return the descending schedule sigma_i = shift*u / (1 + (shift-1)*u) at u = 1 - i/steps, (steps+1,) from 1 to 0."""
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def training_grid(schedule_steps: int, shift: float, first: int, last: int, points: int) -> Tensor:
    """Return the noise levels of training, (points,), descending and linear in sigma.

    They range from the schedule's sigma at index `first`, the noisiest, to that at index `last`.
    """
    sigmas = shifted_sigmas(schedule_steps, shift)
    return torch.linspace(float(sigmas[first]), float(sigmas[last]), points)
