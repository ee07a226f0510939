import typing

from srpo_core.config import GateRule
from srpo_core.gates.expectations import SEVERITIES, rules_that_hold
from srpo_core.gates.rules import BOUND_WORDS, BOUNDS, COMPARISONS


def choices(field):
    return set(typing.get_args(GateRule.model_fields[field].annotation))


def test_the_registries_hold_exactly_what_the_settings_allow():
    assert choices("against") == set(COMPARISONS)
    assert choices("bound") == set(BOUNDS) == set(BOUND_WORDS)
    assert choices("severity") == set(SEVERITIES)


def test_the_suite_agrees_with_plain_comparison_on_every_side_of_a_threshold(make):
    figures = [-1.0, -0.1, 0.0, 0.1, 1.0]
    rules, values, expected = {}, {}, {}
    for figure in figures:
        for name, limits in (
            ("least", {"at_least": 0.0, "at_most": None}),
            ("most", {"at_least": None, "at_most": 0.0}),
        ):
            key = f"{name} at {figure}"
            rules[key] = make.rule(**limits)
            values[key] = figure
            expected[key] = figure >= 0 if name == "least" else figure <= 0
    assert rules_that_hold(rules, values) == expected


def test_a_figure_that_is_not_finite_holds_no_threshold(make):
    limits = make.rule(at_least=0.0)
    rules = {"nan": limits, "inf": limits, "fine": limits}
    held = rules_that_hold(rules, {"nan": float("nan"), "inf": float("inf"), "fine": 1.0})
    assert held == {"nan": False, "inf": False, "fine": True}
