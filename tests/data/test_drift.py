"""How far data moved is bounded exactly: chance alone is never a finding more often than the confidence allows."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

from srpo_core.data.drift import Agreement, agreement_shift, exact_bounds, style_shift

SHARES = {"anime": 0.4, "photo": 0.3, "paintings": 0.2, "concept-art": 0.1}


def drawn(generator, shares, size):
    return Counter(generator.choice(list(shares), size=size, p=list(shares.values())).tolist())


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (1, 7), (7, 7), (30, 100), (999, 1000)])
def test_the_bounds_of_a_share_are_those_of_scipys_exact_interval(hits, trials):
    expected = binomtest(hits, trials).proportion_ci(confidence_level=0.95, method="exact")
    assert exact_bounds(hits / trials, trials, 0.025) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("size", [8, 50, 1000])
def test_two_samples_of_the_same_styles_are_a_finding_less_often_than_the_confidence_allows(size):
    generator = np.random.default_rng(size)
    found = sum(
        style_shift(drawn(generator, SHARES, 1000), drawn(generator, SHARES, size), 0.95).beyond(0.0)
        for _ in range(200)
    )
    assert binomtest(found, 200, 0.05, alternative="greater").pvalue > 0.01


def test_random_splits_of_one_list_are_a_finding_less_often_than_the_confidence_allows():
    generator, styles = np.random.default_rng(0), np.repeat(list(SHARES), [400, 300, 200, 100])
    found = 0
    for _ in range(200):
        order = generator.permutation(styles)
        found += style_shift(Counter(order[:800].tolist()), Counter(order[800:].tolist()), 0.95).beyond(0.0)
    assert found <= 10


@pytest.mark.parametrize("num_styles", [2, 4, 40])
def test_shares_exactly_at_the_limit_are_a_finding_less_often_than_the_confidence_allows(num_styles):
    """Of many styles, the plain distance of two samples is far above the true one, which is the limit here."""
    generator = np.random.default_rng(num_styles)
    even = {str(style): 1 / num_styles for style in range(num_styles)}
    moved = {style: share + (0.2 if int(style) % 2 else -0.2) / num_styles for style, share in even.items()}
    shifts = [
        style_shift(drawn(generator, even, 500), drawn(generator, moved, 500), 0.95) for _ in range(200)
    ]
    assert np.mean([one.value for one in shifts]) > (0.15 if num_styles == 40 else 0.09)
    assert sum(one.beyond(0.1) for one in shifts) <= 10


def test_a_bound_never_exceeds_the_distance_and_finds_styles_that_moved():
    generator = np.random.default_rng(3)
    moved = {"anime": 0.1, "photo": 0.3, "paintings": 0.2, "concept-art": 0.4}
    shifts = [
        style_shift(drawn(generator, SHARES, 1000), drawn(generator, moved, 400), 0.95) for _ in range(200)
    ]
    assert sum(one.beyond(0.1) for one in shifts) >= 190
    assert sum(one.low <= 0.3 for one in shifts) >= 190
    assert all(0 <= one.low <= one.value for one in shifts)
    assert np.mean([one.value for one in shifts]) == pytest.approx(0.3, abs=0.03)


def test_a_style_that_is_new_is_a_finding_and_one_prompt_never_is():
    before = {"anime": 500, "photo": 500}
    assert style_shift(before, {"anime": 250, "photo": 250, "sketch": 300}, 0.95).beyond(0.2)
    assert not style_shift(before, {"sketch": 1}, 0.95).beyond(0.1)
    assert style_shift(before, {"sketch": 1}, 0.95).value == 1.0


def test_equal_shares_have_no_distance():
    assert style_shift({"a": 2, "b": 4}, {"a": 10, "b": 20}, 0.95).value == 0.0


def agreement(generator, share, prompts, pairs_per_prompt):
    """The pairs of a prompt agree or disagree together, as images of one prompt often do."""
    of_prompt = generator.random(prompts) < share
    names = np.repeat(np.arange(prompts), pairs_per_prompt)
    return Agreement(of_prompt[names].tolist(), [str(name) for name in names])


@pytest.mark.parametrize("pairs_per_prompt", [1, 6])
def test_equal_agreements_are_a_finding_less_often_than_the_confidence_allows(pairs_per_prompt):
    generator = np.random.default_rng(pairs_per_prompt)
    found = sum(
        agreement_shift(
            agreement(generator, 0.8, 100, pairs_per_prompt),
            agreement(generator, 0.8, 60, pairs_per_prompt),
            0.95,
        ).beyond(0.0)
        for _ in range(200)
    )
    assert found <= 10


@pytest.mark.parametrize(("share", "sign"), [(0.5, -1), (0.98, 1)])
def test_an_agreement_that_fell_or_rose_is_found_and_the_interval_has_the_difference(share, sign):
    generator = np.random.default_rng(5)
    old, new = agreement(generator, 0.75, 500, 1), agreement(generator, share, 500, 1)
    moved = agreement_shift(old, new, 0.95)
    assert moved.beyond(0.05)
    assert np.sign(moved.value) == sign
    assert moved.low < share - 0.75 < moved.high


def test_thousands_of_styles_have_no_bound_and_no_error():
    before = {f"style {n}": 1 for n in range(3000)}
    after = {f"other {n}": 1 for n in range(3000)}
    moved = style_shift(before, after, 0.95)
    assert moved.value == 1
    assert moved.low == 0
