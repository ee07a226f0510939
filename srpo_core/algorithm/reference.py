"""Rounding of the reference implementation that the paper does not mention; used with `train.reference: true`.

Three effects, each observed in runs of the reference (docs/algorithm.md, quirks 4, 9 and 16): the time input is
truncated to whole thousandths; noise has bfloat16 precision; and where an index of the grid is a Python number,
torch's type promotion computes the product of noise level and noise in bfloat16.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from srpo_core.algorithm.arithmetic import EXACT, Arithmetic, Times, exact_time
from srpo_core.algorithm.direct_align import Branch, step_length
from srpo_core.config import TrainSettings

TIMESTEPS = 1000  # of FLUX's time input


class Rounded(Protocol):
    """Settings that say whether to compute as the reference implementation does, such as `TrainSettings`."""

    @property
    def reference(self) -> bool:
        """As `train.reference`."""
        ...


def arithmetic_of(branch: Branch, settings: TrainSettings) -> Arithmetic:
    """Return the arithmetic of a branch: exact, or the reference's."""
    if not settings.reference:
        return EXACT
    points = settings.direct_align.grid
    usual = step_length(points, settings.direct_align.ratio)
    # where m == usual, the reference's min() returns the Python number of the two equal lengths
    t_is_a_number = branch.clamped & (points - 1 - branch.t == usual) & (2 * usual < points)
    return Arithmetic(time=truncated_time, at_s=_rounding(branch.clamped), at_t=_rounding(t_is_a_number))


def time_of(settings: Rounded) -> Callable[[Tensor], Tensor]:
    """Return the function from noise level to time input that is used outside of branches."""
    return truncated_time if settings.reference else exact_time


def noise_of(noise: Tensor, settings: Rounded) -> Tensor:
    """Return noise in float32, with the reference rounded to bfloat16."""
    return noise.bfloat16().float() if settings.reference else noise


def truncated_time(sigma: Tensor) -> Tensor:
    """Truncate the time input to whole thousandths: on average half a thousandth too low."""
    return (sigma * TIMESTEPS).int() / TIMESTEPS


def _rounding(samples: Tensor) -> Times:
    """Return a product that rounds both factors and the result to bfloat16 for the samples (B,) that are True."""

    def times(level: Tensor, eps: Tensor) -> Tensor:
        rounded = (level.bfloat16() * eps.bfloat16()).float()
        return torch.where(samples.to(eps.device)[:, None, None], rounded, level * eps)

    return times
