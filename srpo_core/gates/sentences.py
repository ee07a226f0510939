"""The outcome of a rule in one sentence that a newcomer understands."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.config import GateRule
from srpo_core.gates.rules import BY_PROOF_OF_BREACH, Measurement, asks_for_gain

WHOM: Final[Mapping[str, str]] = MappingProxyType({"base": "the base", "champion": "the champion"})


def sentence(rule: GateRule, measured: Measurement | None, *, passed: bool, rose: bool | None) -> str:
    """Say what was measured, what was asked, and what follows.

    measured: None if the rule does not apply; rose: whether the training objective did, None if that is not known;
    rules of severity hacking take note of it.
    """
    if measured is None:
        return "there is no champion yet to compare with, so the rule does not apply"
    if measured.fault:
        return f"{measured.fault}, so it is not shown that {rule.meaning}"
    percent = f"{100 * measured.confidence:.3g}%"
    seen = f"{_what(rule, measured.value)} ({percent} interval {_ends(rule, measured)})"
    demand = _demand(rule)
    if rule.severity not in BY_PROOF_OF_BREACH:
        end = {"at_least": "the lower end", "at_most": "the upper end", "within": "the whole interval"}[
            rule.side
        ]
        asked = f"{seen}; {end} had to be {demand} and is"
        return (
            f"{asked}: {rule.meaning}" if passed else f"{asked} not, so it is not shown that {rule.meaning}"
        )
    if not passed:
        gained = _trade(rose) if rule.severity == "hacking" else ""
        return f"{seen}; the whole interval lies where it is not {demand}{gained}: it no longer holds that {rule.meaning}"
    if rule.severity == "hacking" and rose is False:
        return f"{seen}; asked only if the training objective rises, and it is not shown to: {rule.meaning}"
    return f"{seen}; it is not shown to lie where it is not {demand}: {rule.meaning}"


def _trade(rose: bool | None) -> str:
    if rose is None:
        return " while it is not known whether the training objective rose"
    return " while the training objective rose, which is how reward hacking looks"


def _what(rule: GateRule, value: float) -> str:
    whom = WHOM.get(rule.against, "")
    if rule.compare == "difference":
        return f"{rule.metric} changed by {value:+.3f} against {whom}"
    if rule.compare == "ratio":
        return f"{rule.metric} is {value:.3f} times that of {whom}"
    if rule.compare == "win_rate":
        even = f", where those within {rule.tie:g} of each other count half" if rule.tie else ""
        return f"by {rule.metric}, {value:.1%} of the images beat those of {whom}{even}"
    return f"{rule.metric} is {value:.3f}"


def _ends(rule: GateRule, measured: Measurement) -> str:
    return f"{_figure(rule, measured.low)} to {_figure(rule, measured.high)}"


def _demand(rule: GateRule) -> str:
    if rule.side == "within":
        unit = {"difference": "no change", "ratio": "equality", "win_rate": "one half"}[rule.compare]
        return f"within {rule.margin:.3g} of {unit}"
    side = (
        {"at_least": "above", "at_most": "below"}[rule.side]
        if asks_for_gain(rule)
        else rule.side.replace("_", " ")
    )
    return f"{side} {_figure(rule, rule.margin)}"


def _figure(rule: GateRule, figure: float) -> str:
    return {"difference": f"{figure:+.3f}", "win_rate": f"{figure:.1%}"}.get(rule.compare, f"{figure:.3f}")
