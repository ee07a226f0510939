"""Direct-Align: train any timestep by one model call, because the injected noise is known.

Inject noise eps into an image x0, take one model step from noise level s to t, and recover the image in closed form;
the recovered image depends on the model's velocity v:

    x = s·eps + (1−s)·x0        y = x + (t−s)·v(x, s)        x̂0 = (y − t·eps) / (1−t)

Shen et al. 2025, section 3.2. The denoise branch has t < s, the inversion branch t > s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo_core.algorithm.arithmetic import Arithmetic, Times
from srpo_core.config import BranchName
from srpo_core.protocols import Condition, VelocityModel

EDGE = 5  # least number of grid points between the midpoint and either end


@dataclass(frozen=True)
class Branch:
    """The position of one branch on the training grid, per sample: all (B,).

    s, t: indices of the noise levels at which the model is called and to which it steps; discount: index of k;
    clamped: whether s was clamped at the clean end of the grid.
    """

    s: Tensor
    t: Tensor
    discount: Tensor
    clamped: Tensor

    @classmethod
    def joined(cls, branches: Sequence["Branch"]) -> "Branch":
        """Concatenate several branches into one of a larger batch."""
        parts = ((branch.s, branch.t, branch.discount, branch.clamped) for branch in branches)
        return cls(*(torch.cat(same) for same in zip(*parts, strict=True)))


def step_length(points: int, ratio: float) -> int:
    """Return the usual distance of s and t in grid points, about (1-ratio)*points."""
    return int((1 - ratio) * points) + 1


def branches(midpoints: Sequence[int], points: int, ratio: float) -> Mapping[BranchName, Branch]:
    """Return both branches of each midpoint m from EDGE to points-EDGE, counted from the clean end of the grid.

    With k grid points between s and t, less near the ends of the grid, the denoise branch steps from m+k down to m
    and the inversion branch from m-k up to m.
    """
    usual = step_length(points, ratio)
    denoise, inversion = [], []
    for m in midpoints:
        k = min(points - m, usual, m)
        denoise.append((points - min(m + k, points), points - m, m, False))
        mu = max(m - k, 1)
        inversion.append((points - mu, points - min(mu + k, points), mu, m - k < mu))
    return {"denoise": _branch(denoise), "inversion": _branch(inversion)}


def inject(x0: Tensor, eps: Tensor, s: Tensor, times: Times = torch.mul) -> Tensor:
    """Return the noisy state x = s·eps + (1−s)·x0 of latents (B, S, C) at noise levels s (B,)."""
    s = s[:, None, None]
    return times(s, eps) + (1 - s) * x0


def recover(y: Tensor, eps: Tensor, t: Tensor, times: Times = torch.mul) -> Tensor:
    """Return the image x̂0 = (y − t·eps) / (1−t) of a state y (B, S, C) at noise levels t (B,) < 1."""
    t = t[:, None, None]
    return (y - times(t, eps)) / (1 - t)


def one_step_recovery(
    model: VelocityModel,
    x0: Tensor,
    eps: Tensor,
    condition: Condition,
    *,
    s: Tensor,
    t: Tensor,
    guidance: float,
    arithmetic: Arithmetic,
) -> Tensor:
    """Inject noise at s, step to t by one model call, and recover the image.

    Returns x̂0 (B, S, C), differentiable in the model. A perfect model (v = eps − x0) returns x0 for all s and t.
    """
    x = inject(x0, eps, s, arithmetic.at_s)
    v = model(x, arithmetic.time(s), guidance, condition)
    y = x + (t - s)[:, None, None] * v
    return recover(y, eps, t, arithmetic.at_t)


def _branch(rows: Sequence[tuple[int, int, int, bool]]) -> Branch:
    s, t, discount, clamped = torch.tensor(rows).unbind(-1)
    return Branch(s, t, discount, clamped.bool())
