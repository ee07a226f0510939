"""The limits of a format."""

import math

import pytest

from srpo_core.config import FormatLimits
from srpo_core.fidelity.limits import broken_limits

LIMITS = FormatLimits(max_relative_error=0.1, min_psnr=20, min_completeness=0.8, min_gain_kept=0.3)
GOOD = {"relative_error": 0.1, "psnr": 20.0, "completeness": 0.8, "gain_kept": 0.3}


def test_a_nan_figure_excludes_a_format_and_a_missing_figure_does_not():
    measured = {"relative_error": math.nan, "psnr": None, "completeness": math.nan, "gain_kept": None}
    assert [reason.split()[0] for reason in broken_limits(measured, LIMITS)] == [
        "relative_error",
        "completeness",
    ]


def test_a_figure_on_its_limit_meets_it():
    assert broken_limits(GOOD, LIMITS) == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("relative_error", 0.101, "relative_error 0.101 is above max_relative_error 0.1"),
        ("psnr", 19.9, "psnr 19.9 is below min_psnr 20"),
        ("completeness", 0.79, "completeness 0.79 is below min_completeness 0.8"),
        ("gain_kept", -0.2, "gain_kept -0.2 is below min_gain_kept 0.3"),
    ],
)
def test_each_figure_beyond_its_limit_is_a_reason(name, value, reason):
    assert broken_limits(GOOD | {name: value}, LIMITS) == [reason.replace("min_psnr 20", "min_psnr 20.0")]
