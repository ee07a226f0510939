"""The comparison of solvers: on an equation whose solution is known, each comes close with the calls that it is given."""

import pytest
import torch

from srpo_core.algorithm.schedule import shifted_sigmas


@pytest.fixture(scope="module")
def solvers(benchmark_named):
    return benchmark_named("solvers")


def test_every_solver_integrates_an_equation_with_the_model_calls_that_its_row_says(solvers):
    start = torch.ones(2, 4, 3)
    solution = torch.exp(-torch.sin(torch.tensor(1.0)))
    for name, solver in solvers.SOLVERS.items():
        called = []

        def velocity(z, sigma, called=called):
            called.append(float(sigma))
            return torch.cos(sigma) * z

        x0 = solver(velocity, start, shifted_sigmas(16, 1.583))
        assert len(called) == 16, name
        assert x0.mean() == pytest.approx(float(solution), abs=0.02), name


def test_the_reference_is_more_accurate_than_every_solver(solvers):
    def velocity(z, sigma):
        return torch.cos(sigma) * z

    start = torch.ones(2, 4, 3)
    found = solvers.runge_kutta(velocity, start, shifted_sigmas(16, 1.583))
    assert found.mean() == pytest.approx(float(torch.exp(-torch.sin(torch.tensor(1.0)))), abs=1e-6)
