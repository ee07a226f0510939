"""The evidence of early stop as a curve towards its threshold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from srpo_core.report.charts import Level, Series, line_chart

ABOVE: Final = 2.0  # powers of ten above the threshold up to which evidence is drawn
ALL: Final = "all limits"


def alarm_panel(alarm: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the chart of the evidence, with its threshold, for the template; None if no checkpoint was evaluated.

    alarm: see `alarm_outcome`. The lines are the evidence over all limits and that of the limit with the most.
    """
    if not alarm or not alarm["curve"]:
        return None
    curve, threshold = alarm["curve"], alarm["threshold"]
    strongest = max(curve[-1]["limits"], key=lambda name: float(curve[-1]["limits"][name]))
    highest = math.log10(threshold) + ABOVE
    lines = [
        Series(ALL, _points(curve, [row["evidence"] for row in curve], highest)),
        Series(strongest, _points(curve, [row["limits"][strongest] for row in curve], highest)),
    ]
    label = "evidence by checkpoint after step"
    svg = line_chart(
        lines,
        label=label,
        x_label="checkpoint after step",
        level=Level(math.log10(threshold), f"1/alpha = {threshold:g}"),
        powers=True,
    )
    return {"name": "evidence", "note": "", "names": [line.name for line in lines], "svg": svg}


def alarm_figures(alarm: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a row per limit for the template: its name, its evidence, and mean and limit of the last evaluation."""
    if not alarm or not alarm["curve"]:
        return []
    last = alarm["curve"][-1]
    return [
        {**row, "evidence": last["limits"][row["name"]]}
        for row in alarm["figures"]
        if row["step"] == last["step"]
    ]


def _points(
    curve: Sequence[Mapping[str, Any]], values: Sequence[float], highest: float
) -> list[tuple[float, float]]:
    """Return (step, power of ten)."""
    return [
        (float(row["step"]), min(math.log10(value), highest))
        for row, value in zip(curve, values, strict=True)
    ]
