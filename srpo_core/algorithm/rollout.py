"""Rollouts: generate the images that training starts from."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from srpo_core.algorithm.arithmetic import exact_time
from srpo_core.algorithm.method import TrainBatch
from srpo_core.algorithm.reference import Rounded, noise_of, time_of
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import RolloutSettings, SolverName, TrainSettings
from srpo_core.protocols import BaseModel, Condition, VelocityModel

Time = Callable[[Tensor], Tensor]


def euler_step(
    model: VelocityModel,
    z: Tensor,
    condition: Condition,
    *,
    sigma: Tensor,
    next_sigma: Tensor,
    guidance: float,
    time: Time = exact_time,
) -> Tensor:
    """Take one Euler step of dz = v dsigma with latents (B, S, C), from a scalar sigma to the next."""
    v = model(z, time(sigma).expand(len(z)), guidance, condition)
    return z + (next_sigma - sigma) * v


def ab2_velocity(v: Tensor, former: Tensor, *, step: Tensor, former_step: Tensor) -> Tensor:
    """Return the mean velocity over the next step by Adams-Bashforth of order 2, with a step length of its own.

    The line through the velocities (B, S, C) at this and at the former sigma, in the middle of the next step. Hairer,
    Norsett and Wanner, Solving Ordinary Differential Equations I, III.5; order 2 of k-diffusion's `sample_lms`.
    """
    return v + step / (2 * former_step) * (v - former)


@torch.no_grad()
def states(
    model: VelocityModel,
    noise: Tensor,
    condition: Condition,
    *,
    sigmas: Tensor,
    guidance: float,
    time: Time = exact_time,
    solver: SolverName = "euler",
) -> Iterator[Tensor]:
    """Yield the latents (B, S, C) at each of the descending sigmas, the first is the noise; without gradients.

    Every step has one model call. The first and the last step are Euler's with any solver: the first has no former
    velocity, and the last one of few steps is too long to extrapolate over it.
    """
    z, last = noise.float(), len(sigmas) - 2
    former: tuple[Tensor, Tensor] | None = None
    yield z
    for number, (sigma, next_sigma) in enumerate(pairwise(sigmas.to(noise.device))):
        v, step = model(z, time(sigma).expand(len(z)), guidance, condition), next_sigma - sigma
        if solver == "euler" or former is None or number == last:
            z = z + step * v
        else:
            z = z + step * ab2_velocity(v, former[0], step=step, former_step=former[1])
        former = (v, step)
        yield z


def rollout(
    model: VelocityModel,
    noise: Tensor,
    condition: Condition,
    *,
    sigmas: Tensor,
    guidance: float,
    time: Time = exact_time,
    solver: SolverName = "euler",
) -> Tensor:
    """Integrate dz = v dsigma from noise (B, S, C) along descending sigmas; return the last latents."""
    for z in states(model, noise, condition, sigmas=sigmas, guidance=guidance, time=time, solver=solver):
        last = z
    return last


def roll_out(
    model: BaseModel, eps: Tensor, condition: Condition, roll: RolloutSettings, rounded: Rounded
) -> Tensor:
    """Generate images x0 (B, S, C) from noise eps with the sampler of `train.rollout`, without gradients."""
    sigmas, time = shifted_sigmas(roll.num_inference_steps, roll.shift), time_of(rounded)
    with model.prepared(condition, times=time(sigmas[:-1]), guidance=roll.guidance_scale):
        return rollout(
            model.velocity,
            eps,
            condition,
            sigmas=sigmas,
            guidance=roll.guidance_scale,
            time=time,
            solver=roll.solver,
        )


def starting_images(model: BaseModel, batch: TrainBatch, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """Return images x0 and the noise eps to inject, both (B, S, C).

    x0 is the batch's given image where there is one, else a rollout from eps.
    """
    eps = noise_of(batch.noise, settings)
    rows = [row for row in range(len(eps)) if row not in batch.given]
    images = dict(batch.given)
    if rows:
        generated = roll_out(model, eps[rows], batch.condition[rows], settings.rollout, settings)
        images |= dict(zip(rows, generated, strict=True))
    return torch.stack([images[row] for row in range(len(eps))]), eps


def real_share(rollout: RolloutSettings) -> float:
    """Return the share of the samples that start from a real image, in [0, 1]."""
    return rollout.share_offline if rollout.source == "hybrid" else float(rollout.source == "offline")


def given_share(rollout: RolloutSettings) -> float:
    """Return the share of the samples that start from a given image, a real one or a cached one, in [0, 1]."""
    return 1.0 if rollout.source == "cached" else real_share(rollout)
