"""What rules say about a model that is equal to the base: whether it meets them, and how often chance refuses it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from srpo_core.artifacts import BASE
from srpo_core.config import GateRule
from srpo_core.gates.bootstrap import Floats
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.rules import BY_PROOF_OF_BREACH, Measurement, limits


def chance_of_refusing_an_equal(
    rules: Mapping[str, GateRule], measured: Mapping[str, Measurement]
) -> float | None:
    """Estimate the chance in [0, 1] that a model equal to the base fails a rule that equality satisfies.

    It is estimated from the spread of these pairs: the resampled statistics, moved so that their centre is no change,
    serve as outcomes of equal models, each with an interval as wide as the measured one. Rules that ask for a gain are
    left out, because an equal model should fail them. Rules of severity hacking count as armed, so the figure is
    slightly too high. None if no rule counts, or if one that counts has a fault, because its outcome is unknown.
    """
    counted = [
        name
        for name, rule in rules.items()
        if name in measured and rule.against == BASE and rule.severity != "warn" and equality_satisfies(rule)
    ]
    if not counted or any(measured[name].fault for name in counted):
        return None
    failed = [_fails(rules[name], *_ends_of_equals(rules[name], measured[name])) for name in counted]
    return float(np.mean(np.any(failed, axis=0)))


def _ends_of_equals(rule: GateRule, measured: Measurement) -> tuple[Floats, Floats]:
    """Return the ends (R,) of the intervals of equal models, by the spread of the measured figure.

    A ratio spreads in proportion to its size, so its resamples are divided by it; other figures are shifted.
    """
    comparison = COMPARISONS[rule.compare]
    if comparison.is_ratio and measured.value > 0:
        outcomes = comparison.neutral * measured.draws / measured.value
        return outcomes * (measured.low / measured.value), outcomes * (measured.high / measured.value)
    outcomes = measured.draws - measured.value + comparison.neutral
    return outcomes + (measured.low - measured.value), outcomes + (measured.high - measured.value)


def _fails(rule: GateRule, low: Floats, high: Floats) -> NDArray[np.bool_]:
    """Which intervals, from low (R,) to high (R,), fail the rule."""
    least, greatest = limits(rule)
    # the far bound of the interval must show a breach, the near bound that the rule holds
    near, far = (high, low) if rule.severity in BY_PROOF_OF_BREACH else (low, high)
    failed = np.zeros(len(low), dtype=bool)
    if least is not None:
        failed |= near < least
    if greatest is not None:
        failed |= far > greatest
    return failed


def equality_satisfies(rule: GateRule) -> bool:
    """Whether a copy of the other model has a figure within the rule's limits."""
    neutral = COMPARISONS[rule.compare].neutral
    least, greatest = limits(rule)
    return (least is None or least <= neutral) and (greatest is None or greatest >= neutral)
