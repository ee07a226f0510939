"""The pieces of DanceGRPO, each against an independent computation, and the whole method against a literal loop."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from linear_base import SHAPE, STEPS, Attentive, Colours, Linear, gradient, shares, with_

from srpo_core.algorithm import METHODS, method_of
from srpo_core.algorithm.absolute import scored_texts
from srpo_core.algorithm.dance_grpo import (
    clipped_loss,
    group_advantages,
    log_density,
    num_trained_steps,
    sde_step,
    updates,
)
from srpo_core.algorithm.method import TrainBatch
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.errors import ConfigError
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws
from srpo_core.training.learner import Learner

GROUP, ETA = 3, 0.3
D = torch.float64


@pytest.fixture(autouse=True)
def _double_latents(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def batch():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=D)
    condition = Condition({"text": torch.zeros(2, 1, 1), "pooled": torch.zeros(2, 1)})
    return TrainBatch(["r", "gg"], condition, noise, Draws(0, 1, [0, 1]), {}, "rrr", "bbb")


@pytest.fixture
def settings(tiny_train):
    rollout = tiny_train.rollout.model_copy(update={"num_inference_steps": STEPS})
    train = tiny_train.model_copy(update={"rollout": rollout, "batch_size": 2})
    return with_(train, "dance_grpo", group_size=GROUP, sde_noise=ETA, timestep_fraction=0.75)


MEAN, STD = 0.7, 0.5  # of the images of a Gaussian target


def gaussian_velocity(z, sigma):
    """Return E[noise - image | z] for images from N(MEAN, STD²), the exact velocity of rectified flow."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    return -MEAN + (sigma - (1 - sigma) * STD**2) / variance * (z - (1 - sigma) * MEAN)


def moments_of_the_sampler(steps, eta, last=0.05, *, correct=True):
    """Return mean and variance at sigma `last`, exactly: every step is affine in z with Gaussian noise."""
    mean, variance = 0.0, 1.0
    sigmas = torch.linspace(1, last, steps + 1, dtype=D)
    for sigma, following in pairwise(sigmas):
        z = torch.tensor([0.0, 1.0], dtype=D).view(2, 1, 1)
        v = gaussian_velocity(z, sigma)
        ends, std = sde_step(v, z, sigma=sigma.expand(2), next_sigma=following.expand(2), eta=eta)
        if not correct:
            ends = z + (following - sigma) * v
        offset, slope = float(ends[0]), float(ends[1] - ends[0])
        mean, variance = slope * mean + offset, slope**2 * variance + float(std[0]) ** 2
    return mean, variance


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_stochastic_steps_keep_the_marginals_of_the_deterministic_flow(eta):
    """For a Gaussian target the marginal at sigma is N((1-sigma)·m, (1-sigma)²·s² + sigma²); the error falls with the step."""
    last = 0.05
    expected = ((1 - last) * MEAN, (1 - last) ** 2 * STD**2 + last**2)
    coarse, fine = (moments_of_the_sampler(steps, eta, last) for steps in (200, 800))
    for one, two, exact in zip(coarse, fine, expected, strict=True):
        assert two == pytest.approx(exact, rel=4e-3)
        assert abs(two - exact) < 0.35 * abs(one - exact) + 1e-9, "first order"


def test_noise_without_the_score_term_would_widen_the_marginals():
    variance = (1 - 0.05) ** 2 * STD**2 + 0.05**2
    assert moments_of_the_sampler(800, 1.0, correct=False)[1] > 1.5 * variance


def test_a_step_without_noise_is_the_euler_step():
    z, v = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(n), dtype=D) for n in (0, 1))
    sigma, following = torch.tensor([0.9, 0.5], dtype=D), torch.tensor([0.7, 0.1], dtype=D)
    mean, std = sde_step(v, z, sigma=sigma, next_sigma=following, eta=0.0)
    assert torch.allclose(mean, z + (following - sigma)[:, None, None] * v, rtol=1e-12)
    assert std.abs().max() == 0


def test_the_log_density_is_that_of_torchs_normal_distribution_averaged_over_an_image():
    generator = torch.Generator().manual_seed(0)
    z, mean = (torch.randn(SHAPE, generator=generator, dtype=D) for _ in range(2))
    std = torch.tensor([0.3, 2.0], dtype=D)[:, None, None]
    expected = torch.distributions.Normal(mean, std.expand(SHAPE)).log_prob(z).flatten(1).mean(1)
    assert torch.allclose(log_density(z, mean, std), expected, rtol=1e-12)


def test_advantages_are_standardized_within_each_group_and_clamped():
    rewards = np.random.default_rng(0).normal(size=(6, 4)) * [1, 10, 0.1, 1] + [0, 5, -3, 0]
    rewards[:, 3] = [0, 0, 0, 0, 0, 9]
    expected = (rewards - rewards.mean(0)) / (rewards.std(0, ddof=1) + 1e-8)
    found = group_advantages(torch.tensor(rewards), 5.0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        group_advantages(torch.tensor(rewards), 0.5).numpy(), np.clip(expected, -0.5, 0.5), atol=1e-12
    )
    assert group_advantages(torch.full((4, 2), 0.3), 5.0).abs().max() == 0


def test_the_clipped_objective_and_its_gradient_are_those_of_a_literal_loop():
    c = 0.1
    density = torch.tensor([0.0, 0.05, 0.3, -0.3, 0.05, 0.3, -0.3, 0.0], dtype=D, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0, -2.0, -2.0, -2.0, 0.0], dtype=D)
    losses = clipped_loss(density, torch.zeros(8, dtype=D), advantages, c)
    losses.sum().backward()
    for i, (log_ratio, a) in enumerate(zip(density.tolist(), advantages.tolist(), strict=True)):
        ratio = np.exp(log_ratio)
        better_left = (a > 0 and ratio > 1 + c) or (a < 0 and ratio < 1 - c)
        expected = -a * (1 + c if a > 0 else 1 - c) if better_left else -a * ratio
        assert float(losses[i].detach()) == pytest.approx(expected, rel=1e-12)
        assert float(density.grad[i]) == pytest.approx(0.0 if better_left else -a * ratio, rel=1e-12)


def literal_rollout(batch, settings, row, member):
    """Roll out one image by the formulas of the paper; return states, the last latents and the reward."""
    model, reward, grpo = Linear(), Colours(), settings.dance_grpo
    sigmas = shifted_sigmas(STEPS, settings.rollout.shift)
    z = batch.noise[row : row + 1]
    if member > 0 and grpo.group_noise == "per_image":
        z = batch.draws.noise(("member", member), SHAPE[1:])[row : row + 1].double()
    states = [z]
    with torch.no_grad():
        for i in range(STEPS - 1):
            fresh = batch.draws.noise(("sde", member, i), SHAPE[1:])[row : row + 1]
            mean, std = literal_step(model, z, sigmas[i], sigmas[i + 1], grpo.sde_noise)
            z = mean + std * fresh
            states.append(z)
        x0 = z - sigmas[-2] * model.velocity(z, sigmas[-2:-1], 1, None)
        score = reward.score(model.decode(x0).clamp(0, 1), scored_texts(batch, settings)[row : row + 1])
    return states, x0, float(score)


def literal_step(model, z, sigma, following, eta):
    """Return mean and deviation with the score as the official code writes it, through the predicted image."""
    v = model.velocity(z, sigma.expand(1), 1, None)
    image = z - sigma * v
    score = -(z - image * (1 - sigma)) / sigma**2
    return z + (following - sigma) * (v - 0.5 * eta**2 * score), eta * (sigma - following).sqrt()


def literal_gradient(batch, settings):
    """Return the policy gradient -sum A·grad(log density) / (G·K), image by image and step by step."""
    model, grpo = Linear(), settings.dance_grpo
    sigmas, count = shifted_sigmas(STEPS, settings.rollout.shift), num_trained_steps(settings)
    loss = 0.0
    for row in range(2):
        rolled = [literal_rollout(batch, settings, row, member) for member in range(GROUP)]
        scores = np.array([score for _, _, score in rolled])
        advantages = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-8)
        for member, (states, _, _) in enumerate(rolled):
            for i in batch.draws.orders(("trained steps", member), STEPS - 1)[row][:count]:
                mean, std = literal_step(model, states[i], sigmas[i], sigmas[i + 1], grpo.sde_noise)
                density = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(states[i + 1]).mean()
                loss = loss - advantages[member] * density / (GROUP * count)
    loss.backward()
    return model.transformer.weight.grad


@pytest.mark.parametrize("group_noise", ["shared", "per_image"])
@pytest.mark.parametrize("together", [True, False])
def test_the_gradient_of_the_first_update_is_the_policy_gradient(batch, settings, group_noise, together):
    settings = with_(settings, "dance_grpo", group_noise=group_noise)
    settings = settings.model_copy(update={"batch_branches": together})
    ours, terms, model = gradient("dance_grpo", batch, settings)
    assert torch.allclose(ours, literal_gradient(batch, settings), rtol=1e-6, atol=1e-10)
    assert float(ours.norm()) > 1e-3
    trained = [size for with_gradient, size in model.calls if with_gradient]
    assert trained == ([2 * GROUP] * 3 if together else [2] * 9)
    means = [np.mean([literal_rollout(batch, settings, row, m)[2] for m in range(GROUP)]) for row in range(2)]
    for term in terms:
        assert term.rewards["wanted"].tolist() == pytest.approx(means, rel=1e-6)


def test_a_group_starts_from_one_noise_or_from_several(batch, settings):
    def starts(train):
        first = []
        model = Linear()
        velocity = model.velocity
        model.velocity = lambda z, *rest: first.append(z) or velocity(z, *rest)
        gradient("dance_grpo", batch, train, model)
        return first[0].view(GROUP, *SHAPE)

    assert torch.equal(starts(settings), batch.noise.expand(GROUP, *SHAPE))
    own = starts(with_(settings, "dance_grpo", group_noise="per_image"))
    assert torch.equal(own[0], batch.noise)
    assert not any(torch.allclose(own[a, row], own[b, 1]) for a, b in ((0, 1), (1, 2)) for row in range(2))
    everywhere = with_(settings, "dance_grpo", group_noise="per_image").model_copy(update={"noise": "shared"})
    for member in starts(everywhere)[1:]:
        assert torch.equal(member[0], member[1]), "train.noise shared: all samples of a step start alike"


def test_the_scale_and_the_offset_of_the_reward_do_not_change_the_gradient(batch, settings):
    plain, _, _ = gradient("dance_grpo", batch, settings)

    class Other(Colours):
        def score(self, images, texts):
            return 40 * super().score(images, texts) - 7

    model = Linear()
    sum(term.losses.sum() for term in METHODS["dance_grpo"].run(model, Other(), batch, settings)).backward()
    assert torch.allclose(plain, model.transformer.weight.grad, rtol=1e-4, atol=1e-8)


def test_a_reward_without_a_gradient_trains(batch, settings):
    class Rounded(Colours):
        def score(self, images, texts):
            return (super().score(images, texts) * 100).round()

    model = Linear()
    sum(term.losses.sum() for term in METHODS["dance_grpo"].run(model, Rounded(), batch, settings)).backward()
    assert float(model.transformer.weight.grad.norm()) > 1e-3


def test_later_updates_compare_with_the_densities_of_the_rollout_and_are_clipped(batch, settings):
    """Between the updates the weights are changed by hand; every loss is then that of the literal formula."""
    settings = with_(settings, "dance_grpo", updates_per_rollout=3, clip_range=1e-3)
    model, sigmas = Linear(), shifted_sigmas(STEPS, settings.rollout.shift)
    scores = [[literal_rollout(batch, settings, row, m) for m in range(GROUP)] for row in range(2)]
    before, after, place, clipped = Linear(), Linear(), 0, 0
    for term in METHODS["dance_grpo"].run(model, Colours(), batch, settings):
        assert term.ends_update == (place < 2), "each of the three trained steps is an update"
        for row in range(2):
            each = np.array([score for _, _, score in scores[row]])
            advantages = (each - each.mean()) / (each.std(ddof=1) + 1e-8)
            expected = 0.0
            for m, (states, _, _) in enumerate(scores[row]):
                i = batch.draws.orders(("trained steps", m), STEPS - 1)[row][place]
                now, then = (
                    torch.distributions.Normal(*literal_step(one, states[i], sigmas[i], sigmas[i + 1], ETA))
                    .log_prob(states[i + 1])
                    .mean()
                    for one in (after, before)
                )
                ratio = float(torch.exp(now - then))
                bounded = min(max(ratio, 0.999), 1.001)
                clipped += bounded != ratio
                expected -= min(ratio * advantages[m], bounded * advantages[m]) / GROUP
            assert float(term.losses[row].detach()) == pytest.approx(expected, rel=1e-5, abs=1e-9)
        with torch.no_grad():
            for one in (model, after):
                one.transformer.weight.copy_(one.transformer.weight * 1.05)
        place += 1
    assert place == 3
    assert clipped > 0


def test_every_update_changes_the_weights_before_the_next_is_computed(settings):
    """Two updates of a step are two optimizer steps, and micro-batches and ranks share each of them."""
    share, moved = shares(4), []
    for micro in (None, 1):
        train = with_(settings, "dance_grpo", updates_per_rollout=2, clip_range=0.5)
        train = train.model_copy(update={"batch_size": 4, "micro_batch_size": micro})
        model = Attentive()
        optimizer = torch.optim.SGD(model.transformer.parameters(), lr=0.1)
        steps = []
        optimizer.register_step_post_hook(
            lambda *_, model=model, steps=steps: steps.append(model.transformer.weight.detach().clone())
        )
        figures = Learner(model, Colours(), optimizer, train, METHODS["dance_grpo"].run).step(
            share([0, 1, 2, 3], ()), 1
        )
        assert len(steps) == 2
        assert not torch.allclose(steps[0], steps[1], rtol=1e-4)
        moved.append((steps, figures))
    (whole, figures), (split, others) = moved
    for one, other in zip(whole, split, strict=True):
        assert torch.allclose(one, other, rtol=1e-10)
    assert others == pytest.approx(figures, rel=1e-9)


def test_the_trained_steps_are_divided_evenly_among_the_updates():
    assert [list(part) for part in updates(9, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert [len(part) for part in updates(9, 9)] == [1] * 9


@pytest.mark.parametrize(
    ("steps", "share", "trained"), [(16, 0.6, 9), (25, 0.6, 14), (101, 0.29, 29), (2, 0.6, 1), (5, 1.0, 4)]
)
def test_a_share_of_the_stochastic_steps_is_trained(settings, steps, share, trained):
    train = with_(
        with_(settings, "rollout", num_inference_steps=steps), "dance_grpo", timestep_fraction=share
    )
    assert num_trained_steps(train) == trained


def test_each_image_trains_its_own_steps_without_repetition():
    orders = [Draws(0, 1, range(8)).orders(("trained steps", member), 15) for member in range(4)]
    flat = [tuple(order) for one in orders for order in one]
    assert all(sorted(order) == list(range(15)) for order in flat)
    assert len(set(flat)) == len(flat)
    assert orders[0][5:6] == Draws(0, 1, [5]).orders(("trained steps", 0), 15), "keyed by the global index"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("rollout", {"num_inference_steps": 1}, r"train\.rollout\.num_inference_steps to 2 or more, not 1"),
        ("dance_grpo", {"updates_per_rollout": 4}, r"updates_per_rollout 4 is more than the 3 trained steps"),
    ],
)
def test_settings_that_the_method_cannot_train_with_are_refused_for_it_alone(
    settings, part, changes, message
):
    train = with_(settings, part, **changes)
    method_of(train.model_copy(update={"method": "srpo"}))
    with pytest.raises(ConfigError, match=message):
        method_of(train.model_copy(update={"method": "dance_grpo"}))
