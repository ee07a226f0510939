import math

import numpy as np
import pytest

from srpo_core.gates.bootstrap import DRAWS_AT_ONCE, mean_interval, resampled_means

CONFIDENCE = 0.9
WORLDS = 400
PROMPTS = 60


def interval(figures, seed=0, confidence=CONFIDENCE, resamples=1000):
    return mean_interval(
        np.asarray(figures, dtype=float),
        confidence=confidence,
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("draw", ["normal", "bernoulli"])
def test_the_interval_covers_the_truth_at_about_its_nominal_rate(draw):
    world = np.random.default_rng(11)
    shape = (WORLDS, PROMPTS)
    if draw == "normal":
        truth, samples = 0.3, world.normal(0.3, 1.0, shape)
    else:
        truth, samples = 0.4, (world.random(shape) < 0.4).astype(float)
    ends = np.array([interval(sample, seed) for seed, sample in enumerate(samples)])
    covered = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    # three standard errors of 400 worlds, and one point for the known shortness of percentile intervals
    assert abs(covered - CONFIDENCE) < 3 * math.sqrt(0.9 * 0.1 / WORLDS) + 0.01


def test_the_interval_is_as_wide_as_the_normal_theory_says():
    figures = np.random.default_rng(3).normal(0, 1, 400)
    low, high = interval(figures, confidence=0.95, resamples=20_000)
    expected = 2 * 1.96 * figures.std() / math.sqrt(len(figures))
    assert high - low == pytest.approx(expected, rel=0.03)
    assert (low + high) / 2 == pytest.approx(figures.mean(), abs=0.01)


def test_a_higher_confidence_gives_a_wider_interval_around_the_same_mean():
    figures = np.random.default_rng(5).normal(1, 1, 50)
    narrow, wide = interval(figures, confidence=0.8), interval(figures, confidence=0.99)
    assert wide[0] < narrow[0] < figures.mean() < narrow[1] < wide[1]


def test_constant_figures_have_an_interval_of_no_width():
    assert interval([0.25] * 7) == (0.25, 0.25)


def test_one_figure_shows_no_spread():
    assert all(math.isnan(end) for end in interval([0.9]))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    figures = np.random.default_rng(1).random(30)
    assert interval(figures, seed=4) == interval(figures, seed=4)
    assert interval(figures, seed=4) != interval(figures, seed=5)


def test_resampling_in_parts_fills_every_place(monkeypatch):
    figures = np.full(10, 2.0)
    monkeypatch.setattr("srpo_core.gates.bootstrap.DRAWS_AT_ONCE", 70)
    means = resampled_means(figures, 101, np.random.default_rng(0))
    assert means.shape == (101,)
    assert (means == 2.0).all()
    assert DRAWS_AT_ONCE > 70
