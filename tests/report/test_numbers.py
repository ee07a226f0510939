import pytest

from srpo_core.report.numbers import finite, percent, plain, signed


@pytest.mark.parametrize(
    ("figure", "as_plain", "as_signed"),
    [
        (0.12345, "0.123", "+0.123"),
        (-0.5, "−0.500", "−0.500"),
        (-0.0001, "0.000", "+0.000"),
        (None, "–", "–"),
    ],
)
def test_figures_are_rounded_with_a_minus_sign_and_without_negative_zero(figure, as_plain, as_signed):
    assert plain(figure) == as_plain
    assert signed(figure) == as_signed


def test_a_fraction_becomes_a_percentage():
    assert percent(0.9654, 1) == "96.5%"


def test_values_that_are_not_finite_become_none():
    assert [finite(figure) for figure in (1.5, float("nan"), float("inf"), float("-inf"))] == [
        1.5,
        None,
        None,
        None,
    ]
