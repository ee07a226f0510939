"""What the reference's code does to the numbers beyond the paper; in force with `train.reference: true`.

Three effects, each found by running the reference (docs/algorithm.md, quirks 4, 9 and 16):
the time input is cut to whole thousandths; noise has bfloat16's precision; and where an index of the
grid was a Python number, torch's type promotion takes the product of noise level and noise in bfloat16.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from srpo_core.algorithm.arithmetic import EXACT, Arithmetic, Times, exact_time
from srpo_core.algorithm.direct_align import Branch, step_length
from srpo_core.config import TrainSettings

TIMESTEPS = 1000  # FLUX counts its time input in thousandths


def arithmetic_of(branch: Branch, settings: TrainSettings) -> Arithmetic:
    """The arithmetic of a branch's one step: exact, or the reference's."""
    if not settings.reference:
        return EXACT
    points = settings.direct_align.grid
    usual = step_length(points, settings.direct_align.ratio)
    # m == usual, and the smaller of two equal lengths was the Python number
    t_is_a_number = branch.clamped & (points - 1 - branch.t == usual) & (2 * usual < points)
    return Arithmetic(time=truncated_time, at_s=_rounding(branch.clamped), at_t=_rounding(t_is_a_number))


def time_of(settings: TrainSettings) -> Callable[[Tensor], Tensor]:
    """The model's time input outside of a branch, as a function of the noise level."""
    return truncated_time if settings.reference else exact_time


def noise_of(noise: Tensor, settings: TrainSettings) -> Tensor:
    """Noise in float32, in the reference with the precision of bfloat16."""
    return noise.bfloat16().float() if settings.reference else noise


def truncated_time(sigma: Tensor) -> Tensor:
    """The time input cut to whole thousandths: on average half a thousandth too clean."""
    return (sigma * TIMESTEPS).int() / TIMESTEPS


def _rounding(samples: Tensor) -> Times:
    """A product that is taken in bfloat16, the level rounded too, for the samples (B,) that are True."""

    def times(level: Tensor, eps: Tensor) -> Tensor:
        rounded = (level.bfloat16() * eps.bfloat16()).float()
        return torch.where(samples.to(eps.device)[:, None, None], rounded, level * eps)

    return times
