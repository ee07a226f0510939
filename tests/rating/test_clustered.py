"""Intervals over crossed raters and prompts: formulas by hand, and coverage in simulations with fixed random numbers."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t
from simulated_people import People, of_table

from srpo_core.rating.clustered import (
    EQUAL,
    Estimate,
    anytime,
    estimate,
    mean_interval,
    rate_interval,
    unseen_share,
)

CASES = [
    # raters, prompts, people
    (3, 20, People(gain=0.0)),
    (3, 60, People()),
    (5, 40, People(gain=1.2, prompts=1.0)),
    (10, 20, People(raters=0.6)),
    (10, 60, People(raters=0.0)),
]
REPETITIONS = 400


def test_a_full_table_has_the_variance_of_the_analysis_of_variance():
    """Searle, Casella and McCulloch 1992: (MS_raters + MS_prompts - MS_rest) / (R·P)."""
    table = np.random.default_rng(3).normal(size=(4, 9)) + np.arange(4)[:, None] + np.arange(9)
    raters, prompts = table.shape
    mean = table.mean()
    rows, columns = table.mean(1), table.mean(0)
    of_raters = prompts * ((rows - mean) ** 2).sum() / (raters - 1)
    of_prompts = raters * ((columns - mean) ** 2).sum() / (prompts - 1)
    rest = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((raters - 1) * (prompts - 1))
    found = of_table(table)
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx((of_raters + of_prompts - rest) / (raters * prompts))
    assert found.freedom == pytest.approx(
        (of_raters + of_prompts - rest) ** 2
        / (
            of_raters**2 / (raters - 1)
            + of_prompts**2 / (prompts - 1)
            + rest**2 / ((raters - 1) * (prompts - 1))
        )
    )


def test_several_images_of_a_prompt_count_as_one_answer_and_equal_weights_change_nothing():
    values = np.array([1.0, 0.0, 1.0, 0.5, 1.0, 0.0, 0.5])
    once = estimate(values, np.ones(7), list("aaabbbb"), list("xyzxyzw"))
    twice = estimate(np.repeat(values, 2), np.full(14, 0.3), list("aaaaaabbbbbbbb"), list("xxyyzzxxyyzzww"))
    assert twice.mean == pytest.approx(once.mean)
    assert twice.variance == pytest.approx(once.variance)
    assert twice.freedom == pytest.approx(once.freedom)


@pytest.mark.parametrize(("raters", "prompts", "people"), CASES, ids=str)
def test_the_interval_covers_the_win_rate_at_its_nominal_rate(raters, prompts, people):
    """400 tasks per case: 95 % is met within what chance does, .928 to .972 (95 %), and wider is allowed with 3 raters."""
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(REPETITIONS):
        low, high = rate_interval(of_table(people.values(raters, prompts, generator)), 0.95)
        covered += low <= people.win_rate <= high
    assert covered / REPETITIONS >= 0.925
    assert raters == 3 or covered / REPETITIONS <= 0.985


def test_clusters_of_prompts_alone_would_miss_the_truth_far_too_often():
    people, generator, covered = People(raters=0.6), np.random.default_rng(5), 0
    for _ in range(REPETITIONS):
        means = people.values(3, 40, generator).mean(0)
        half = t.ppf(0.975, 39) * means.std(ddof=1) / math.sqrt(40)
        covered += abs(means.mean() - people.win_rate) <= half
    assert covered / REPETITIONS < 0.7


@pytest.mark.parametrize("raters", [3, 5])
def test_an_interval_over_tables_with_gaps_and_weights_covers_too(raters):
    people, generator, covered = People(), np.random.default_rng(17), 0
    for _ in range(REPETITIONS):
        table = people.values(raters, 40, generator)
        present = generator.random(table.shape) < 0.7
        weights = np.repeat(generator.uniform(0.3, 1.0, raters), 40).reshape(table.shape)
        rater, prompt = np.nonzero(present)
        found = estimate(table[present], weights[present], rater.tolist(), prompt.tolist())
        low, high = rate_interval(found, 0.95)
        covered += low <= people.win_rate <= high
    assert covered / REPETITIONS >= 0.925


def test_a_difference_of_rates_is_covered():
    generator, covered = np.random.default_rng(23), 0
    people, others = People(gain=0.0, raters=0.3), People(gain=-1.0, raters=0.3)
    truth = norm.cdf(0 / math.sqrt(1 + 0.09 + 0.25)) - norm.cdf(-1 / math.sqrt(1 + 0.09 + 0.25))
    for _ in range(REPETITIONS):
        table = (people.differences(4, 30, generator) > 0).astype(float)
        table -= others.differences(4, 30, generator) > 0
        low, high = mean_interval(of_table(table), 0.95, bounds=(-1.0, 1.0))
        covered += low <= truth <= high
    assert covered / REPETITIONS >= 0.925


def test_answers_that_are_all_equal_prove_no_certainty():
    all_won = of_table(np.ones((3, 40)))
    low, high = rate_interval(all_won, 0.95)
    assert (low, high) == (pytest.approx(1 - 0.0881, abs=1e-4), 1.0)  # Clopper and Pearson for 0 of 40
    assert unseen_share(all_won, 0.95) == pytest.approx(1 - 0.025 ** (1 / 40))
    never = of_table(np.zeros((3, 40)))
    assert mean_interval(never, 0.95, bounds=(-1.0, 1.0)) == (
        pytest.approx(-0.0881, abs=1e-4),
        pytest.approx(0.0881, abs=1e-4),
    )


@pytest.mark.parametrize(
    ("raters", "prompts", "share"), [(2, 6, 0.5), (2, 40, 0.5), (4, 8, 0.25), (6, 12, 1 / 6)]
)
def test_raters_who_contradict_each_other_exactly_have_an_interval_that_is_wide(raters, prompts, share):
    """Each prompt and each rater has the same mean, so that all variance is in the answers themselves."""
    table = np.array(
        [[(r + p) % round(1 / share) == 0 for p in range(prompts)] for r in range(raters)], float
    )
    found = of_table(table)
    assert found.mean == pytest.approx(share)
    assert found.freedom == pytest.approx((raters - 1) * (prompts - 1))
    # of independent answers it would be share·(1 - share) / number
    assert found.variance >= share * (1 - share) / table.size
    low, high = rate_interval(found, 0.95)
    half = 1.96 * math.sqrt(share * (1 - share) / table.size)
    assert 0 <= low < share - 0.6 * half
    assert share + half < high <= 1
    low, high = mean_interval(found, 0.95, bounds=(-1.0, 1.0))
    assert low < share - half < share + half < high


def test_a_table_without_any_variance_to_be_found_has_no_interval():
    found = Estimate(0.5, float("nan"), float("nan"), raters=2, prompts=6)
    assert all(math.isnan(end) for end in rate_interval(found, 0.95))
    assert all(math.isnan(end) for end in mean_interval(found, 0.95))
    # nearly equal answers, of which rounding leaves no variance
    tiny = of_table(np.full((2, 6), 0.5) + np.eye(2, 6) * 4 * EQUAL)
    assert all(math.isnan(end) or 0 <= end <= 1 for end in rate_interval(tiny, 0.95))


@pytest.mark.parametrize("shape", [(1, 40), (3, 5)])
def test_one_rater_or_a_handful_of_prompts_have_a_mean_and_no_interval(shape):
    found = of_table(People().values(*shape, np.random.default_rng(0)))
    assert 0 <= found.mean <= 1
    assert all(math.isnan(end) for end in rate_interval(found, 0.95))
    assert all(math.isnan(end) for end in mean_interval(found, 0.95))


def test_looks_at_any_time_err_no_more_often_than_one_look():
    """An interval for one look misses at one of 14 looks too often; the widened one does not."""
    people, generator = People(gain=0.0), np.random.default_rng(29)
    missed = np.zeros(2, dtype=int)
    for _ in range(200):
        table = people.values(5, 60, generator)
        found = [(prompts, of_table(table[:, :prompts])) for prompts in range(8, 61, 4)]
        for number, looks_once in enumerate((True, False)):
            intervals = [
                rate_interval(one, 0.95, widened=1.0 if looks_once else anytime(prompts / 60, 0.95))
                for prompts, one in found
            ]
            missed[number] += not all(low <= people.win_rate <= high for low, high in intervals)
    assert missed[0] / 200 > 0.08
    assert missed[1] / 200 <= 0.05


def test_the_price_of_looking_early_falls_until_the_planned_end():
    """Waudby-Smith et al. 2024: boundary sqrt(2 (s+1)/s log(sqrt(s+1)/alpha)), s = 8.78 at the end for alpha = .05."""
    prices = [anytime(share, 0.95) for share in (0.1, 0.3, 0.6, 1.0)]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] * norm.ppf(0.975) == pytest.approx(3.035, abs=0.01)
