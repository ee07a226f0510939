from itertools import product

import numpy as np
import pytest

from srpo_core.training.betting import SHARES, evidence, log_growth

LIMIT = 0.1  # on a share; the excess of an image is 0.9 or -0.1


def expected(chances, planned, evaluations):
    """Return the expected evidence after `evaluations`, over all outcomes of independent images with these chances."""
    total = 0.0
    for outcome in product((0, 1), repeat=len(chances) * evaluations):
        images = np.array(outcome).reshape(evaluations, -1)
        chance = np.where(images == 1, chances, 1 - np.array(chances)).prod()
        growth = [log_growth(row - LIMIT, -LIMIT) for row in images]
        total += chance * evidence(growth, planned)[-1]
    return total


@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_on_the_limit_the_wealth_neither_gains_nor_loses_on_average(evaluations):
    assert expected([LIMIT] * 3, 3, evaluations) == pytest.approx(1, abs=1e-12)


def test_images_that_differ_in_their_chance_gain_nothing_if_their_mean_is_on_the_limit():
    assert expected([0.0, 0.0, 0.3], 2, 2) < 1
    assert expected([0.05, 0.1, 0.15], 2, 2) < 1


def test_beyond_the_limit_the_wealth_grows_and_within_it_it_falls():
    assert expected([0.2] * 3, 3, 3) > 1.1
    assert expected([0.05] * 3, 3, 3) < 0.99


def test_one_evaluation_multiplies_the_wealth_by_the_product_over_its_images():
    growth = log_growth(np.array([0.9, -0.1]), -0.1)
    assert growth == pytest.approx([np.log(1 + 9 * share) + np.log(1 - share) for share in SHARES])


def test_an_excess_below_the_lowest_counts_as_the_lowest():
    assert log_growth(np.array([-5.0]), -0.1) == pytest.approx(log_growth(np.array([-0.1]), -0.1))


def test_at_most_alpha_of_the_runs_on_the_limit_reach_one_over_alpha_at_any_evaluation():
    random, alpha, planned = np.random.default_rng(0), 0.1, 12
    images = random.random((400, planned, 32)) < LIMIT
    alarms = 0
    for run in images:
        growth = [log_growth(evaluation - LIMIT, -LIMIT) for evaluation in run]
        alarms += (evidence(growth, planned) >= 1 / alpha).any()
    assert 0 < alarms <= alpha * len(images)


def test_a_late_fault_is_found_although_early_bets_were_lost():
    """Without a start at each evaluation, the wealth that is lost before the fault would have to be won back."""
    good, bad = np.zeros(32) - LIMIT, (np.arange(32) < 8) - LIMIT
    growth = [log_growth(images, -LIMIT) for images in [good] * 9 + [bad] * 3]
    found = evidence(growth, 12)
    assert found[8] < 1
    assert found[11] > 100 * np.exp(np.sum(growth, axis=0)).mean()


def test_the_evidence_of_a_hopeless_run_is_still_a_number():
    growth = [log_growth(np.full(200, 0.9), -0.1)] * 4
    assert np.isfinite(evidence(growth, 4)).all()
