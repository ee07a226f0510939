import pytest
import torch

from srpo_core.algorithm.schedule import shifted_sigmas, training_grid


def test_the_schedule_decreases_from_noise_to_image():
    sigmas = shifted_sigmas(25, 3.0)
    assert (float(sigmas[0]), float(sigmas[-1]), len(sigmas)) == (1.0, 0.0, 26)
    assert bool((sigmas.diff() < 0).all())


def test_a_shift_of_one_leaves_the_schedule_linear():
    assert torch.equal(shifted_sigmas(8, 1.0), torch.linspace(1, 0, 9))


def test_the_papers_grid_ranges_from_964_to_750_thousandths():
    grid = training_grid(50, 3.0, 5, 25, 1000)
    assert float(grid[0]) == pytest.approx(0.964286, abs=1e-6)
    assert float(grid[-1]) == pytest.approx(0.75, abs=1e-6)
    assert grid.diff().abs().max() == pytest.approx(2.145e-4, rel=1e-3)
