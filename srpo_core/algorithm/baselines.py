"""Baselines for Direct-Align that train the sampler's own steps.

ReFL (Xu et al. 2023, arXiv 2304.05977) trains one late call, DRaFT (Clark et al. 2023, arXiv 2309.17400) the last
calls. Both train only the end of the trajectory; Direct-Align does not have this limit.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srpo_core.algorithm.absolute import scored
from srpo_core.algorithm.direct_align import inject
from srpo_core.algorithm.method import LossTerm, MethodCost, TrainBatch
from srpo_core.algorithm.reference import noise_of, time_of
from srpo_core.algorithm.rollout import euler_step, rollout, states
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import TrainSettings
from srpo_core.protocols import BaseModel, RewardModel


def refl(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Stop each rollout at a random late step, and predict the image by one trained call.

    x̂0 = z − sigma·v(z, sigma); only this call has a gradient.
    """
    roll, eps = settings.rollout, noise_of(batch.noise, settings)
    sigmas, time = _sigmas(settings, eps.device), time_of(settings)
    last = roll.num_inference_steps - 1
    # rounded, because (1 - 0.7) * 10 is greater than 3 in floating point
    first = math.ceil(round((1 - settings.refl.late_share) * roll.num_inference_steps, 9))
    stops = batch.draws.integers(("late step",), min(first, last), last)
    rolled = states(
        model.velocity,
        eps,
        batch.condition,
        sigmas=sigmas[: last + 1],  # all steps: every worker must call a sharded model equally often
        guidance=roll.guidance_scale,
        time=time,
    )
    at: dict[int, Tensor] = {}
    with model.prepared(batch.condition, times=time(sigmas[:last]), guidance=roll.guidance_scale):
        for step, latents in enumerate(rolled):
            at |= {row: latents[row] for row, stop in enumerate(stops) if stop == step}
    z, sigma = torch.stack([at[row] for row in range(len(eps))]), sigmas[stops]
    v = model.velocity(z, time(sigma), roll.guidance_scale, batch.condition)
    predicted = z - sigma[:, None, None] * v
    yield scored(reward, model.decode(predicted).clamp(0, 1), batch, settings, weight=1)


def refl_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `refl`: all steps but the last without gradients, and one trained call."""
    return MethodCost(
        rollout_calls=settings.rollout.num_inference_steps - 1,
        trained_calls=1,
        recomputed_calls=0,
        scored_images=1,
        noise_levels=1,
    )


def draft_k(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Generate images and backpropagate through the last K steps of the sampler.

    The backward pass recomputes each of these steps, so memory does not grow with K.
    """
    steps = settings.rollout.num_inference_steps
    x0 = _trained_end(model, batch, settings, free=max(steps - settings.draft.last_steps, 0))
    yield scored(reward, model.decode(x0).clamp(0, 1), batch, settings, weight=1)


def draft_k_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `draft_k`: each trained step is computed twice."""
    trained = min(settings.draft.last_steps, settings.rollout.num_inference_steps)
    return MethodCost(
        rollout_calls=settings.rollout.num_inference_steps - trained,
        trained_calls=trained,
        recomputed_calls=trained,
        scored_images=1,
        noise_levels=trained,
    )


def draft_lv(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Train the last step alone (K = 1), on n variations: the first is the rollout's, the others have new noise.

    Their average has a gradient of lower variance.
    """
    count = settings.draft.variations
    x0 = _trained_end(model, batch, settings, free=settings.rollout.num_inference_steps - 1)
    yield scored(reward, model.decode(x0).clamp(0, 1), batch, settings, weight=1 / count)
    image = x0.detach()
    last, end = _sigmas(settings, image.device)[-2:]
    for variation in range(1, count):
        fresh = batch.draws.noise(("variation", variation), tuple(image.shape[1:])).to(image.device)
        x = inject(image, noise_of(fresh, settings), last.expand(len(image)))
        x0 = euler_step(
            model.velocity,
            x,
            batch.condition,
            sigma=last,
            next_sigma=end,
            guidance=settings.rollout.guidance_scale,
            time=time_of(settings),
        )
        yield scored(reward, model.decode(x0).clamp(0, 1), batch, settings, weight=1 / count)


def draft_lv_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `draft_lv`: a trained step per variation, of which the first is computed twice."""
    return MethodCost(
        rollout_calls=settings.rollout.num_inference_steps - 1,
        trained_calls=settings.draft.variations,
        recomputed_calls=1,
        scored_images=settings.draft.variations,
        noise_levels=1,
    )


def _trained_end(model: BaseModel, batch: TrainBatch, settings: TrainSettings, *, free: int) -> Tensor:
    """Return images x0 (B, S, C): `free` steps without gradients, the others with gradient checkpointing."""
    eps, guidance, time = noise_of(batch.noise, settings), settings.rollout.guidance_scale, time_of(settings)
    sigmas = _sigmas(settings, eps.device)
    free_sigmas = sigmas[: free + 1]
    with model.prepared(batch.condition, times=time(free_sigmas[:-1]), guidance=guidance):
        z = rollout(model.velocity, eps, batch.condition, sigmas=free_sigmas, guidance=guidance, time=time)

    def step(z: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
        return euler_step(
            model.velocity,
            z,
            batch.condition,
            sigma=sigma,
            next_sigma=next_sigma,
            guidance=guidance,
            time=time,
        )

    for sigma, next_sigma in zip(sigmas[free:-1], sigmas[free + 1 :], strict=True):
        z = checkpoint(step, z, sigma, next_sigma, use_reentrant=False)
    return z


def _sigmas(settings: TrainSettings, device: torch.device) -> Tensor:
    return shifted_sigmas(settings.rollout.num_inference_steps, settings.rollout.shift).to(device)
