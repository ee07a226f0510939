import pytest
import torch

from srpo_core.algorithm.arithmetic import EXACT
from srpo_core.algorithm.direct_align import EDGE, branches, inject, one_step_recovery, recover, step_length

POINTS = 1000
SHAPE = (4, 6, 8)


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def levels(*values):
    return torch.tensor(values)


def test_a_perfect_model_recovers_the_image_exactly(latents):
    x0, eps = latents
    recovered = one_step_recovery(
        lambda *_: eps - x0,
        x0,
        eps,
        None,
        s=levels(0.9, 0.8, 0.3, 0.2),
        t=levels(0.8, 0.9, 0.2, 0.3),
        guidance=1,
        arithmetic=EXACT,
    )
    assert torch.allclose(recovered, x0, atol=1e-5)


def test_a_velocity_error_changes_the_image_by_the_step_over_the_remaining_signal(latents):
    x0, eps = latents
    s, t = levels(0.9, 0.8, 0.3, 0.2), levels(0.8, 0.9, 0.2, 0.3)
    error = torch.ones(SHAPE)
    recovered = one_step_recovery(
        lambda *_: eps - x0 + error, x0, eps, None, s=s, t=t, guidance=1, arithmetic=EXACT
    )
    weight = ((t - s) / (1 - t))[:, None, None]
    assert torch.allclose(recovered - x0, weight * error, atol=1e-5)


def test_the_inversion_branch_reverses_the_sign_of_the_gradient(latents):
    x0, eps = latents
    signs = []
    for s, t in ((0.9, 0.8), (0.8, 0.9)):
        v = (eps - x0).requires_grad_()
        level = torch.full((SHAPE[0],), 1.0)
        one_step_recovery(
            lambda *_, v=v: v, x0, eps, None, s=s * level, t=t * level, guidance=1, arithmetic=EXACT
        ).sum().backward()
        signs.append(torch.sign(v.grad).unique().tolist())
    assert signs == [[-1], [1]]


def test_recovery_at_the_same_level_inverts_injection(latents):
    x0, eps = latents
    t = levels(0.1, 0.5, 0.9, 0.96)
    assert torch.allclose(recover(inject(x0, eps, t), eps, t), x0, atol=1e-4)


def test_each_sample_has_its_own_level(latents):
    x0, eps = latents
    s = levels(0.0, 1.0, 0.25, 0.5)
    x = inject(x0, eps, s)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[1], eps[1])
    assert torch.allclose(x[2], 0.25 * eps[2] + 0.75 * x0[2])


def test_the_model_receives_the_noise_level_and_the_guidance(latents):
    x0, eps = latents
    told = {}

    def model(_, timestep, guidance, condition):
        told.update(timestep=timestep.tolist(), guidance=guidance, condition=condition)
        return eps - x0

    s = levels(0.87850, 0.5, 0.9999, 0.0019)
    one_step_recovery(model, x0, eps, "condition", s=s, t=s / 2, guidance=3.5, arithmetic=EXACT)
    assert told["timestep"] == pytest.approx([0.87850, 0.5, 0.9999, 0.0019], abs=1e-7)
    assert (told["guidance"], told["condition"]) == (3.5, "condition")


@pytest.mark.parametrize(("ratio", "expected"), [(0.9, 100), (0.7, 301), (0.8, 200), (0.5, 501), (1.0, 1)])
def test_the_step_length_has_the_floating_point_error_of_the_reference(ratio, expected):
    assert step_length(POINTS, ratio) == expected


def test_both_branches_step_to_the_same_level_in_the_middle_of_the_grid():
    denoise, inversion = branches([500, 300], POINTS, 0.9).values()
    assert denoise.t.tolist() == inversion.t.tolist() == [500, 700]
    assert (denoise.t - denoise.s).tolist() == [100, 100]
    assert (inversion.t - inversion.s).tolist() == [-100, -100]


def test_the_denoise_branch_always_starts_noisier_and_the_inversion_branch_cleaner():
    midpoints = range(EDGE, POINTS - EDGE + 1)
    denoise, inversion = branches(midpoints, POINTS, 0.9).values()
    assert bool((denoise.s < denoise.t).all())
    assert bool((inversion.s > inversion.t).all())
    for branch in (denoise, inversion):
        for places in (branch.s, branch.t, branch.discount):
            assert int(places.min()) >= 0
            assert int(places.max()) < POINTS
