"""What Direct-Align is compared with: gradients through the sampler itself, on the same trainer and budget.

ReFL (Xu et al. 2023, arXiv 2304.05977) trains one late call; DRaFT (Clark et al. 2023, arXiv 2309.17400)
the last calls. Both reach only the end of the trajectory, which is what Direct-Align does away with.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srpo_core.algorithm.absolute import scored
from srpo_core.algorithm.direct_align import inject
from srpo_core.algorithm.method import LossTerm, TrainBatch
from srpo_core.algorithm.reference import noise_of, time_of
from srpo_core.algorithm.rollout import euler_step, rollout, states
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import TrainSettings
from srpo_core.protocols import BaseModel, RewardModel


def refl(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Stop each rollout at a random late step, and let one trained call predict the image from there.

    x̂0 = z − sigma·v(z, sigma): the gradient reaches this call alone.
    """
    roll, eps = settings.rollout, noise_of(batch.noise, settings)
    sigmas, time = _sigmas(settings, eps.device), time_of(settings)
    first = math.ceil(
        round((1 - settings.refl.late_share) * roll.num_inference_steps, 9)
    )  # (1 - 0.7) · 10 is above 3
    stops = batch.draws.integers(
        ("late step",), min(first, roll.num_inference_steps - 1), roll.num_inference_steps - 1
    )
    rolled = states(
        model.rollout_velocity,
        eps,
        batch.condition,
        sigmas=sigmas[
            : roll.num_inference_steps
        ],  # to the latest stop there may be: every worker must call a cut model as often
        guidance=roll.guidance_scale,
        time=time,
    )
    at: dict[int, Tensor] = {}
    for step, latents in enumerate(rolled):
        at |= {row: latents[row] for row, stop in enumerate(stops) if stop == step}
    z, sigma = torch.stack([at[row] for row in range(len(eps))]), sigmas[stops]
    v = model.velocity(z, time(sigma), roll.guidance_scale, batch.condition)
    predicted = z - sigma[:, None, None] * v
    yield scored(reward, model.decode(predicted).clamp(0, 1), batch, settings, weight=1)


def draft_k(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Draw images and let the gradient flow back through the last K steps of the sampler.

    Each of these steps is computed again on the way back, so that K does not multiply the memory.
    """
    steps = settings.rollout.num_inference_steps
    x0 = _trained_end(model, batch, settings, free=max(steps - settings.draft.last_steps, 0))
    yield scored(reward, model.decode(x0).clamp(0, 1), batch, settings, weight=1)


def draft_lv(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Train the last step alone (K = 1), on n variations: the image's own, the others with fresh noise.

    The variations are averaged, for a gradient of lower variance.
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


def _trained_end(model: BaseModel, batch: TrainBatch, settings: TrainSettings, *, free: int) -> Tensor:
    """Images x0 (B, S, C): `free` steps without gradients, the others with, their activations not kept."""
    eps, guidance, time = noise_of(batch.noise, settings), settings.rollout.guidance_scale, time_of(settings)
    sigmas = _sigmas(settings, eps.device)
    free_sigmas = sigmas[: free + 1]
    z = rollout(
        model.rollout_velocity, eps, batch.condition, sigmas=free_sigmas, guidance=guidance, time=time
    )

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
