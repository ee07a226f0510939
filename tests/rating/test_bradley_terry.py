"""Bradley-Terry strengths against a published example, their intervals in a simulation, and comparisons without strengths."""

import numpy as np
import pytest
from scipy.special import expit

from srpo_core.errors import DataError
from srpo_core.rating.bradley_terry import Pairs, fit

# Agresti 2002, "Categorical Data Analysis", table 10.10: the American League in 1987, wins of the row against the column
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)
# the strengths relative to Baltimore, Agresti 2002, section 10.6.3
PUBLISHED = {
    "Milwaukee": 1.58,
    "Detroit": 1.44,
    "Toronto": 1.29,
    "New York": 1.25,
    "Boston": 1.11,
    "Cleveland": 0.68,
}


def pairs_of(rows, models) -> Pairs:
    """Comparisons from (first, second, value, rater, prompt)."""
    first, second, values, raters, prompts = zip(*rows, strict=True)
    return Pairs(
        tuple(models),
        np.array(first),
        np.array(second),
        np.array(values, dtype=float),
        np.ones(len(rows)),
        raters,
        prompts,
    )


def season(teams=TEAMS, wins=WINS) -> Pairs:
    rows = [
        (i, j, 1.0, f"r{n % 5}", f"p{n % 7}")
        for i in range(len(teams))
        for j in range(len(teams))
        for n in range(wins[i, j])
    ]
    return pairs_of(rows, teams)


def test_the_strengths_are_those_of_the_published_example():
    found = {one.model: one.value for one in fit(season(), confidence=0.95)}
    assert sum(found.values()) == pytest.approx(0, abs=1e-9)
    for team, strength in PUBLISHED.items():
        assert found[team] - found["Baltimore"] == pytest.approx(strength, abs=6e-3)
    assert list(found) == [*PUBLISHED, "Baltimore"]  # the strongest first


def test_a_tie_is_half_a_win_of_each():
    tied = pairs_of([(0, 1, 0.5, "a", "x"), (0, 1, 1.0, "b", "y")], ("base", "new"))
    split = pairs_of(
        [(0, 1, 1.0, "a", "x"), (1, 0, 1.0, "a", "x"), (0, 1, 1.0, "b", "y"), (0, 1, 1.0, "b", "y")],
        ("base", "new"),
    )
    one, other = (fit(pairs, confidence=0.95)[0].value for pairs in (tied, split))
    assert one == pytest.approx(other)
    assert one == pytest.approx(np.log(3) / 2)


def test_intervals_cover_the_true_differences_over_raters_and_prompts():
    """Three models, 5 raters with tastes of their own, 40 prompts: the true strengths are covered in at least 92.5 % of tasks."""
    generator, truth = np.random.default_rng(41), np.array([0.5, 0.0, -0.5])
    covered = total = 0
    for _ in range(120):
        tastes = generator.normal(0, 0.25, (5, 3))
        of_prompts = generator.normal(0, 0.3, (40, 3))
        rows = []
        for i, j in ((0, 1), (0, 2), (1, 2)):
            for r in range(5):
                for p in range(40):
                    both = truth + tastes[r] + of_prompts[p]
                    won = generator.random() < expit(both[i] - both[j])
                    rows.append((i, j, float(won), f"r{r}", f"p{p}"))
        for one in fit(pairs_of(rows, ("a", "b", "c")), confidence=0.95):
            # random effects shrink the marginal strengths by a few per cent, less than the interval sees
            covered += one.low <= truth["abc".index(one.model)] <= one.high
            total += 1
    assert covered / total >= 0.925


def test_models_that_were_never_compared_are_named():
    rows = [(0, 1, 1.0, "a", "x"), (0, 1, 0.0, "a", "y"), (2, 3, 1.0, "a", "x"), (2, 3, 0.0, "b", "x")]
    with pytest.raises(DataError, match="no finite strengths: a, b were never compared with c, d"):
        fit(pairs_of(rows, "abcd"), confidence=0.95)


def test_a_model_that_won_everything_is_named_instead_of_an_infinite_strength():
    rows = [(0, 1, 1.0, "a", "x"), (0, 2, 1.0, "a", "y"), (1, 2, 1.0, "a", "x"), (1, 2, 0.0, "b", "x")]
    with pytest.raises(DataError, match="a won, or lost, every comparison with b, c"):
        fit(pairs_of(rows, "abc"), confidence=0.95)
    with pytest.raises(DataError, match="at least 2 models"):
        fit(pairs_of(rows[:1], "a"), confidence=0.95)


def test_one_rater_has_strengths_without_intervals():
    rows = [(0, 1, float(p % 3 > 0), "a", f"p{p}") for p in range(12)]
    best, worst = fit(pairs_of(rows, ("base", "new")), confidence=0.95)
    assert (best.model, worst.model) == ("base", "new")
    assert best.value == pytest.approx(np.log(2) / 2)
    assert np.isnan(best.low) and np.isnan(best.high)
