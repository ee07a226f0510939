"""The choices that the paper leaves open: the model's time input, and the products of noise level and noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Times = Callable[[Tensor, Tensor], Tensor]
"""Multiplies noise levels (B, 1, 1) and noise (B, S, C)."""


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of one step of Direct-Align.

    time: returns the model's time input (B,) in [0, 1] at noise levels (B,); at_s, at_t: compute the products s·eps
    of the injection and t·eps of the recovery.
    """

    time: Callable[[Tensor], Tensor]
    at_s: Times
    at_t: Times


def exact_time(sigma: Tensor) -> Tensor:
    """Return the noise level itself as time input, as in the base model's training."""
    return sigma


EXACT = Arithmetic(time=exact_time, at_s=torch.mul, at_t=torch.mul)
