"""Krippendorff's alpha against his published examples."""

import math

import numpy as np
import pytest
from simulated_people import level_answers, rating

from srpo_core.rating.agreement import agreements, alpha, alpha_interval, units_of

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: 4 observers, 12 units, values 1 to 5
TABLE = """
A 1 2 3 3 2 1 4 1 2 . . .
B 1 2 3 3 2 2 4 1 2 5 . 3
C . 3 3 3 2 3 4 2 2 5 1 .
D 1 2 3 3 2 4 4 1 2 5 1 .
"""


def units(text: str) -> list[list[int]]:
    rows = [line.split()[1:] for line in text.strip().splitlines()]
    return [[int(cell) - 1 for cell in column if cell != "."] for column in zip(*rows, strict=True)]


def test_alpha_is_that_of_the_published_example_with_missing_answers():
    assert alpha(units(TABLE), 5, ordinal=False) == pytest.approx(0.743, abs=5e-4)
    assert alpha(units(TABLE), 5, ordinal=True) == pytest.approx(0.815, abs=5e-4)


def test_alpha_is_that_of_the_published_examples_of_two_observers():
    """The same report, sections A (binary, .095) and B (nominal, .692)."""
    meg, owen = "0100000010", "1110010000"
    binary = [[int(one), int(other)] for one, other in zip(meg, owen, strict=True)]
    assert alpha(binary, 2, ordinal=False) == pytest.approx(0.095, abs=5e-4)
    ben, gerry = "aabbdcccedda", "babbbccceddd"
    nominal = [["abcde".index(letter) for letter in pair] for pair in zip(ben, gerry, strict=True)]
    assert alpha(nominal, 5, ordinal=False) == pytest.approx(0.692, abs=5e-4)


def test_perfect_agreement_is_one_and_answers_without_variety_or_pairs_say_nothing():
    assert alpha([[0, 0], [1, 1], [3, 3, 3]], 4, ordinal=True) == 1.0
    assert math.isnan(alpha([[0, 0], [0, 0]], 4, ordinal=False))
    assert math.isnan(alpha([[0], [1]], 4, ordinal=False))
    assert math.isnan(alpha([], 4, ordinal=False))
    assert all(math.isnan(end) for end in alpha_interval([], 4, ordinal=False, confidence=0.95, seed=0))


def test_the_interval_contains_alpha_and_does_not_depend_on_the_day():
    table = units(TABLE)
    low, high = alpha_interval(table, 5, ordinal=False, confidence=0.95, seed=0)
    assert low < alpha(table, 5, ordinal=False) < high
    assert (low, high) == alpha_interval(table, 5, ordinal=False, confidence=0.95, seed=0)


def test_units_are_the_plain_items_of_all_raters_and_each_dimension_has_its_own_alpha():
    answers = [
        rating(rater="ada", item="i1", answer="tie"),
        rating(rater="bob", item="i1", answer="first"),
        rating(rater="ada", item="i0", answer="both_bad"),
        rating(rater="ada", item="again", kind="repeat", repeats="i0"),
    ]
    assert units_of(answers, "overall") == [[3], [2, 0]]
    levels = level_answers(3, 30, {"base": 0.1, "new": 0.5}, np.random.default_rng(0))
    found = agreements(levels, confidence=0.95)
    assert set(found) == {"text_alignment", "realism", "aesthetics", "overall"}
    assert all(low < middle < high for middle, low, high in found.values())
    assert agreements([], confidence=0.95) == {}
