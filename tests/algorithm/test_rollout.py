"""The solvers of a rollout, on equations whose solution is known and beside the library's scheduler."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from linear_base import SHAPE, Attentive, shares

from srpo_core.algorithm import METHODS, method_of
from srpo_core.algorithm.rollout import ab2_velocity, rollout, starting_images, states
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import SolverName
from srpo_core.errors import ConfigError
from srpo_core.protocols import Condition

SOLVERS = get_args(SolverName)
CONDITION = Condition({"text": torch.ones(2, 1, 1), "pooled": torch.ones(2, 1)})


@pytest.fixture(autouse=True)
def _double_latents(monkeypatch):
    """Keep float64: a rollout casts bfloat16 noise to float32."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


def with_rollout(settings, **changes):
    return settings.model_copy(update={"rollout": settings.rollout.model_copy(update=changes)})


def oscillating(z, time, guidance, condition):
    """dz/dsigma = cos(sigma)·z, whose solution is z·exp(sin(sigma) - sin(1)) from z at sigma 1."""
    return torch.cos(time.double())[:, None, None] * z


def error(solver, steps):
    start = torch.ones(SHAPE, dtype=torch.float64)
    end = rollout(
        oscillating,
        start,
        CONDITION,
        sigmas=shifted_sigmas(steps, 1.583).double(),
        guidance=1,
        solver=solver,
    )
    return float((end - start * torch.exp(-torch.sin(torch.tensor(1.0, dtype=torch.float64)))).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2)])
def test_a_solver_converges_with_its_order(solver, order):
    errors = [error(solver, steps) for steps in (32, 64, 128)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


def test_ab2_is_more_accurate_than_euler_with_as_many_model_calls():
    for steps in (8, 16):
        assert error("ab2", steps) < error("euler", steps)


def test_ab2_is_exact_over_a_step_where_the_velocity_is_linear_in_sigma():
    def velocity(sigma):
        return 3 + 2 * sigma

    at, following = torch.tensor(0.8), torch.tensor(0.35)
    mean = ab2_velocity(
        velocity(at), velocity(torch.tensor(1.0)), step=following - at, former_step=torch.tensor(-0.2)
    )
    assert float((following - at) * mean) == pytest.approx(
        float(3 * (following - at) + following**2 - at**2), rel=1e-6
    )


@pytest.mark.parametrize("steps", [2, 3, 4, 9])
def test_ab2_equals_the_librarys_linear_multistep_scheduler_of_order_two(steps):
    from diffusers import LMSDiscreteScheduler

    torch.manual_seed(0)
    noise, model = torch.randn(SHAPE, dtype=torch.float64), Attentive()
    sigmas = shifted_sigmas(steps, 3.0)
    scheduler = LMSDiscreteScheduler(prediction_type="epsilon")  # its derivative is then the model's output
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.is_scale_input_called = sigmas, True
    z = noise.float()
    with torch.no_grad():
        for number, time in enumerate(scheduler.timesteps):
            v = model.velocity(z, sigmas[number].expand(2), 1.0, CONDITION)
            order = 1 if number == steps - 1 else 2
            z = scheduler.step(v, time, z, order=order).prev_sample
    ours = rollout(model.velocity, noise, CONDITION, sigmas=sigmas, guidance=1.0, solver="ab2")
    assert torch.allclose(ours, z, rtol=1e-4, atol=1e-5)
    euler = rollout(model.velocity, noise, CONDITION, sigmas=sigmas, guidance=1.0)
    assert torch.allclose(ours, euler) == (steps == 2), "the first and the last step are Euler's"


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_has_one_model_call_as_the_plan_counts_it(tiny_train, solver):
    settings = with_rollout(tiny_train, num_inference_steps=4, solver=solver)
    model = Attentive()
    starting_images(model, shares(5)([0, 1, 2], []), settings)
    assert model.calls == [(False, 3)] * METHODS["srpo"].cost(settings).rollout_calls


def test_training_starts_from_the_images_of_the_solver_of_the_settings(tiny_train):
    batch, images = shares(5)([0, 1], []), {}
    for solver in SOLVERS:
        settings = with_rollout(tiny_train, num_inference_steps=4, solver=solver)
        roll = settings.rollout
        images[solver], _ = starting_images(Attentive(), batch, settings)
        assert torch.equal(
            images[solver],
            rollout(
                Attentive().velocity,
                batch.noise,
                batch.condition,
                sigmas=shifted_sigmas(4, roll.shift),
                guidance=roll.guidance_scale,
                solver=solver,
            ),
        )
    assert not torch.allclose(images["euler"], images["ab2"])


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_image_of_a_sample_does_not_depend_on_the_others_of_its_batch(tiny_train, solver):
    settings = with_rollout(tiny_train, num_inference_steps=6, solver=solver)
    whole, _ = starting_images(Attentive(), shares(5)([0, 1, 2, 3, 4], []), settings)
    part, _ = starting_images(Attentive(), shares(5)([1, 4], []), settings)
    assert torch.allclose(whole[[1, 4]], part, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_states_begin_with_the_noise_and_end_with_the_image(solver):
    generator = torch.Generator().manual_seed(0)
    noise, sigmas = torch.randn(SHAPE, generator=generator, dtype=torch.float64), shifted_sigmas(5, 2.0)
    inputs = {"sigmas": sigmas, "guidance": 1.0, "solver": solver}
    found = list(states(Attentive().velocity, noise, CONDITION, **inputs))
    assert len(found) == 6
    assert torch.equal(found[0], noise)
    assert torch.equal(found[-1], rollout(Attentive().velocity, noise, CONDITION, **inputs))


@pytest.mark.parametrize("method", METHODS)
def test_only_methods_that_start_from_finished_images_take_another_solver(tiny_train, method):
    settings = with_rollout(tiny_train, solver="ab2").model_copy(update={"method": method})
    if METHODS[method].real_images:
        assert method_of(settings) is METHODS[method].run
    else:
        with pytest.raises(
            ConfigError, match=r"solver must be euler, not 'ab2'; methods .* are srpo, direct"
        ):
            method_of(settings)
