"""Drawing the image that training starts from."""

from itertools import pairwise

import torch
from torch import Tensor

from srpo_core.algorithm.schedule import timestep
from srpo_core.protocols import Condition, VelocityModel


@torch.no_grad()
def rollout(
    model: VelocityModel, noise: Tensor, condition: Condition, *, sigmas: Tensor, guidance: float
) -> Tensor:
    """Integrate dz = v dsigma by Euler from noise (B, S, C) along descending sigmas; packed latents (B, S, C)."""
    z = noise.float()
    for sigma, next_sigma in pairwise(sigmas):
        v = model(z, timestep(sigma).expand(len(z)), guidance, condition)
        z = z + (next_sigma - sigma) * v
    return z
