"""The limits of a file format: which of its measured figures miss one."""

from collections.abc import Mapping
from typing import Any

from srpo_core.config import FormatLimits


def broken_limits(figures: Mapping[str, Any], limits: FormatLimits) -> list[str]:
    """List the limits that the figures of a format miss, in words; NaN misses its limit, None does not.

    figures: relative_error, psnr, completeness, gain_kept. Rounding a figure to as many digits as its limit has does
    not change the answer.
    """
    error = figures["relative_error"]
    assert error is not None, "every file has an output error"
    reasons = []
    if not error <= limits.max_relative_error:
        reasons.append(f"relative_error {error:.3g} is above max_relative_error {limits.max_relative_error}")
    for name in ("psnr", "completeness", "gain_kept"):
        value, limit = figures[name], getattr(limits, f"min_{name}")
        if value is not None and not value >= limit:
            reasons.append(f"{name} {value:.3g} is below min_{name} {limit}")
    return reasons
