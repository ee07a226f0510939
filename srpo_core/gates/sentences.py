"""The outcome of a rule in words."""

from srpo_core.config import GateRule
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.rules import BY_PROOF_OF_BREACH, Measurement, asks_for_gain


def sentence(rule: GateRule, measured: Measurement | None, *, passed: bool, rose: bool | None) -> str:
    """Describe what was measured, what the rule requires, and what follows; without a final full stop.

    measured: None if the rule does not apply; rose: whether the training objective rose, None if that is unknown. It
    matters to rules of severity hacking.
    """
    if measured is None:
        return "there is no champion to compare with, so the rule does not apply"
    if measured.fault:
        return f"{measured.fault}. Not shown: {rule.meaning}"
    comparison = COMPARISONS[rule.compare]
    low, high = comparison.format(measured.low), comparison.format(measured.high)
    seen = (
        f"{comparison.describe(rule, measured.value)} ({100 * measured.confidence:.3g} % CI {low} … {high})"
    )
    if rule.severity not in BY_PROOF_OF_BREACH:
        bound = {"at_least": "the lower bound", "at_most": "the upper bound", "within": "the whole interval"}
        shown = "Shown" if passed else "Not shown"
        return f"{seen}; {bound[rule.side]} must be {_limit(rule)}. {shown}: {rule.meaning}"
    if not passed:
        objective = _objective(rose) if rule.severity == "hacking" else ""
        return f"{seen}; no part of the interval is {_limit(rule)}{objective}. No longer true: {rule.meaning}"
    if rule.severity == "hacking" and rose is False:
        return (
            f"{seen}; not checked, because the training objective is not shown to have risen: {rule.meaning}"
        )
    return f"{seen}; not shown to violate the limit {_limit(rule)}: {rule.meaning}"


def _objective(rose: bool | None) -> str:
    if rose is None:
        return ", and it is unknown whether the training objective rose"
    return ", while the training objective rose: the pattern of reward hacking"


def _limit(rule: GateRule) -> str:
    comparison = COMPARISONS[rule.compare]
    if rule.side == "within":
        return f"within ±{rule.margin:.3g} of {comparison.equality}"
    strict = asks_for_gain(rule)
    sign = {"at_least": ">" if strict else "≥", "at_most": "<" if strict else "≤"}[rule.side]
    return f"{sign} {comparison.format(rule.margin)}"
