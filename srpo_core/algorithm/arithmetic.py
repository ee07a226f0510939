"""Where the paper leaves the numbers open: what time the model is told, and how noise is scaled."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Times = Callable[[Tensor, Tensor], Tensor]
"""The product of noise levels (B, 1, 1) and noise (B, S, C)."""


@dataclass(frozen=True)
class Arithmetic:
    """How one step of Direct-Align computes.

    time: the model's time input (B,) in [0, 1] at noise levels (B,); at_s, at_t: the products s·eps
    of the injection and t·eps of the recovery.
    """

    time: Callable[[Tensor], Tensor]
    at_s: Times
    at_t: Times


def exact_time(sigma: Tensor) -> Tensor:
    """The time input is the noise level itself, as the base model was trained."""
    return sigma


EXACT = Arithmetic(time=exact_time, at_s=torch.mul, at_t=torch.mul)
