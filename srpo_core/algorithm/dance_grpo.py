"""DanceGRPO: policy gradients on a stochastic sampler, with rewards compared within a group of images of one prompt.

Xue et al. 2025, arXiv 2505.07818. Functions below name those of the official code, XueZeyue/DanceGRPO,
fastvideo/train_grpo_flux.py at commit 22b85ef. The sampler of
rectified flow, dz = v dsigma, becomes a stochastic one with the same marginals, so that each of its steps has a density:

    dz = (v − ½·eta²·∇log p(z)) dsigma + eta dw        ∇log p(z) = −(z + (1−sigma)·v) / sigma

The reward needs no gradient. A sample of the batch is a prompt with a group of G images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from srpo_core.algorithm.absolute import scored_texts
from srpo_core.algorithm.method import LossTerm, MethodCost, TrainBatch
from srpo_core.algorithm.reference import noise_of, time_of
from srpo_core.algorithm.reward import Rewards, absolute_reward, by_name
from srpo_core.algorithm.rollout import euler_step
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import TrainSettings
from srpo_core.errors import ConfigError
from srpo_core.protocols import BaseModel, Condition, RewardModel
from srpo_core.randomness import keyed_noise


@dataclass(frozen=True)
class Trajectories:
    """What a rollout leaves of N images.

    states: latents (N, S, L, C) before each of the S steps; log_density: (N, S-1), of each stochastic step; x0: the
    images' latents (N, L, C).
    """

    states: Tensor
    log_density: Tensor
    x0: Tensor


def dance_grpo(
    model: BaseModel, reward: RewardModel, batch: TrainBatch, settings: TrainSettings
) -> Iterator[LossTerm]:
    """Make the steps that led to a group's better images more probable, and those that led to its worse ones less.

    All trajectories, and the densities to which the ratios compare, come from the weights before the first update.
    Xue et al. 2025, algorithm 1; `train_one_step`.
    """
    grpo, calls = settings.dance_grpo, _members_of_a_call(settings)
    sigmas = shifted_sigmas(settings.rollout.num_inference_steps, settings.rollout.shift).to(
        batch.noise.device
    )
    condition = batch.condition[_rows(batch, calls[0])]  # of every call: all have equally many members
    times, guidance = time_of(settings)(sigmas[:-1]), settings.rollout.guidance_scale
    with model.prepared(condition, times=times, guidance=guidance):
        rolled = [_rolled_out(model, batch, condition, members, sigmas, settings) for members in calls]
    rewards = _of_groups(
        [_scored(model, reward, one.x0, batch, settings) for one in rolled], len(batch.prompts)
    )
    advantages = group_advantages(rewards.total, grpo.max_advantage)
    figures = by_name(settings.reward_text, Rewards(rewards.total.mean(0), _means(rewards)))
    places = [_trained_steps(batch, members, settings) for members in calls]
    trained = num_trained_steps(settings)
    for update in updates(trained, grpo.updates_per_rollout):
        share = 1 / (grpo.group_size * len(update))
        for place in update:
            for members, one, steps in zip(calls, rolled, places, strict=True):
                density = _density_of_steps(model, one, steps[:, place], batch.condition, sigmas, settings)
                former = one.log_density[range(len(steps)), steps[:, place]]
                losses = clipped_loss(density, former, advantages[members].flatten(), grpo.clip_range) * share
                ends = place == update[-1] != trained - 1 and members is calls[-1]
                yield LossTerm(losses.view(len(members), -1).sum(0), figures, ends_update=ends)


def dance_grpo_cost(settings: TrainSettings) -> MethodCost:
    """Return the model calls of `dance_grpo`, for a whole group.

    Raises:
        ConfigError: the rollout has no stochastic step, or more updates than trained steps.
    """
    grpo, steps = settings.dance_grpo, settings.rollout.num_inference_steps
    trained = grpo.group_size * num_trained_steps(settings)
    if grpo.updates_per_rollout > num_trained_steps(settings):
        raise ConfigError(
            f"train.dance_grpo.updates_per_rollout {grpo.updates_per_rollout} is more than the {num_trained_steps(settings)} "
            f"trained steps of an image, a share {grpo.timestep_fraction} of the {steps - 1} stochastic steps: lower it, "
            "or raise train.dance_grpo.timestep_fraction or train.rollout.num_inference_steps"
        )
    at_once = len(_members_of_a_call(settings)[0])
    return MethodCost(
        rollout_calls=grpo.group_size * steps,
        trained_calls=trained,
        recomputed_calls=0,
        scored_images=grpo.group_size,
        noise_levels=trained,
        images_per_call=at_once,
        images_per_rollout_call=at_once,
        updates=grpo.updates_per_rollout,
        kept_latents=grpo.group_size * steps,
        reward_gradient=False,
    )


def num_trained_steps(settings: TrainSettings) -> int:
    """Return the number of steps of each image that are trained: `timestep_fraction` of the S-1 stochastic steps.

    Raises:
        ConfigError: the rollout has one step, which is not stochastic.
    """
    steps = settings.rollout.num_inference_steps
    if steps == 1:
        raise ConfigError(
            "train.method dance_grpo trains the stochastic steps of the rollout, which are all but the last: set "
            "train.rollout.num_inference_steps to 2 or more, not 1"
        )
    # rounded, because products such as 0.29 * 100 are less than the whole number in floating point
    return max(math.floor(round(settings.dance_grpo.timestep_fraction * (steps - 1), 9)), 1)


def updates(trained_steps: int, count: int) -> list[range]:
    """Divide the places 0 … trained_steps-1 of the trained steps among `count` updates, in equal parts up to one."""
    return [range(trained_steps * i // count, trained_steps * (i + 1) // count) for i in range(count)]


def sde_step(v: Tensor, z: Tensor, *, sigma: Tensor, next_sigma: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Return mean (B, L, C) and standard deviation (B, 1, 1) of the next latents after a stochastic step.

    The Euler-Maruyama step of the stochastic equation above, from sigma to the lower next_sigma, both (B,). The score
    follows from the velocity, because z + (1−sigma)·v predicts the noise. `flux_step` with `sde_solver`.
    """
    sigma, dsigma = sigma[:, None, None], (next_sigma - sigma)[:, None, None]
    score = -(z + (1 - sigma) * v) / sigma
    return z + dsigma * (v - 0.5 * eta**2 * score), eta * torch.sqrt(-dsigma)


def log_density(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the logarithm of the Gaussian density of latents z (B, L, C), averaged over an image's elements, (B,).

    `flux_step` averages as well, so `clip_range` limits the exponential of a difference of averages. It leaves out the
    two terms without z, which cancel in the ratio.
    """
    each = -0.5 * ((z - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return each.mean((1, 2))


def group_advantages(rewards: Tensor, largest: float) -> Tensor:
    """Return (r − mean) / std of rewards (G, B) within each group of G, clamped to ±largest.

    The standard deviation is the unbiased one. A group of equal rewards has no advantages. `train_one_step`.
    """
    centred = rewards - rewards.mean(0)
    return (centred / (rewards.std(0) + 1e-8)).clamp(-largest, largest)


def clipped_loss(density: Tensor, former: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return −min(ratio·A, clip(ratio, 1−c, 1+c)·A) per image, with ratio = exp(density − former); all (B,).

    An image has no gradient once its ratio has left the range on the side to which its advantage pushes.
    `train_one_step`.
    """
    ratio = torch.exp(density - former)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


@torch.no_grad()
def sde_rollout(
    model: BaseModel,
    noise: Tensor,
    condition: Condition,
    steps_noise: Iterator[Tensor],
    *,
    sigmas: Tensor,
    settings: TrainSettings,
) -> Trajectories:
    """Generate images from noise (N, L, C) by stochastic steps along `sigmas`; the last step has no noise.

    steps_noise: yields the noise (N, L, C) of each stochastic step. `run_sample_step`, whose image is the one that the
    last call predicts.
    """
    z, states, densities = noise.float(), [noise.float()], []
    guidance, time, eta = settings.rollout.guidance_scale, time_of(settings), settings.dance_grpo.sde_noise
    levels = sigmas[:, None].expand(-1, len(z))
    for sigma, next_sigma in pairwise(levels[:-1]):
        v = model.velocity(z, time(sigma), guidance, condition)
        mean, std = sde_step(v, z, sigma=sigma, next_sigma=next_sigma, eta=eta)
        z = mean + std * next(steps_noise)
        states.append(z)
        densities.append(log_density(z, mean, std))
    x0 = euler_step(
        model.velocity, z, condition, sigma=sigmas[-2], next_sigma=sigmas[-1], guidance=guidance, time=time
    )
    return Trajectories(torch.stack(states, 1), torch.stack(densities, 1), x0)


def _members_of_a_call(settings: TrainSettings) -> list[list[int]]:
    """Return the members of a group that are computed in each call: all at once, or one by one."""
    members = list(range(settings.dance_grpo.group_size))
    return [members] if settings.batch_branches else [[member] for member in members]


def _rolled_out(
    model: BaseModel,
    batch: TrainBatch,
    condition: Condition,
    members: Sequence[int],
    sigmas: Tensor,
    settings: TrainSettings,
) -> Trajectories:
    """Roll out some members of each group; rows, also those of the condition, are member by member."""
    shape, device = tuple(batch.noise.shape[1:]), batch.noise.device

    def noise_of_step(step: int) -> Tensor:
        each = [batch.draws.noise(("sde", member, step), shape) for member in members]
        return noise_of(torch.cat(each).to(device), settings)

    return sde_rollout(
        model,
        torch.cat([_start(batch, member, settings) for member in members]),
        condition,
        (noise_of_step(step) for step in range(len(sigmas) - 2)),
        sigmas=sigmas,
        settings=settings,
    )


def _start(batch: TrainBatch, member: int, settings: TrainSettings) -> Tensor:
    """Return the noise (B, L, C) from which a member of each group starts."""
    if member == 0 or settings.dance_grpo.group_noise == "shared":
        return noise_of(batch.noise, settings)
    shape, draws = tuple(batch.noise.shape[1:]), batch.draws
    if settings.noise == "shared":
        own = keyed_noise(shape, draws.seed, "member", member, draws.step).expand(len(batch.noise), *shape)
    else:
        own = draws.noise(("member", member), shape)
    return noise_of(own.to(batch.noise.device), settings)


def _rows(batch: TrainBatch, members: Sequence[int]) -> list[int]:
    return list(range(len(batch.prompts))) * len(members)


@torch.no_grad()
def _scored(
    model: BaseModel, reward: RewardModel, x0: Tensor, batch: TrainBatch, settings: TrainSettings
) -> Rewards:
    texts = scored_texts(batch, settings) * (len(x0) // len(batch.prompts))
    return absolute_reward(reward, model.decode(x0).clamp(0, 1), texts)


def _of_groups(parts: Sequence[Rewards], size: int) -> Rewards:
    """Join the rewards of all members to (G, size)."""
    each = {name: torch.cat([one.each[name] for one in parts]).view(-1, size) for name in parts[0].each}
    return Rewards(torch.cat([one.total for one in parts]).view(-1, size), each)


def _means(rewards: Rewards) -> dict[str, Tensor]:
    return {name: values.mean(0) for name, values in rewards.each.items()}


def _trained_steps(batch: TrainBatch, members: Sequence[int], settings: TrainSettings) -> Tensor:
    """Draw the steps that are trained, in random order without repetition, for each image: (members·B, K)."""
    count = settings.rollout.num_inference_steps - 1
    orders = [order for member in members for order in batch.draws.orders(("trained steps", member), count)]
    return torch.tensor(orders)[:, : num_trained_steps(settings)].to(batch.noise.device)


def _density_of_steps(
    model: BaseModel,
    rolled: Trajectories,
    steps: Tensor,
    condition: Condition,
    sigmas: Tensor,
    settings: TrainSettings,
) -> Tensor:
    """Return the log-density (N,) of one step of each trajectory under the current weights, with gradients."""
    images = range(len(steps))
    z, following = rolled.states[images, steps], rolled.states[images, steps + 1]
    sigma, next_sigma = sigmas[steps], sigmas[steps + 1]
    rows = list(range(len(condition))) * (len(steps) // len(condition))
    v = model.velocity(z, time_of(settings)(sigma), settings.rollout.guidance_scale, condition[rows])
    mean, std = sde_step(v, z, sigma=sigma, next_sigma=next_sigma, eta=settings.dance_grpo.sde_noise)
    return log_density(following, mean, std)
