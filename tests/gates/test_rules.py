import math
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srpo_core.artifacts import ALIGNED
from srpo_core.config import GateRule, load_settings
from srpo_core.errors import ConfigError
from srpo_core.gates import decide
from srpo_core.gates.comparisons import COMPARISONS, Comparison, require_valid_rules
from srpo_core.gates.equality import chance_of_refusing_an_equal
from srpo_core.gates.expectations import SEVERITIES, rules_that_hold
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.rules import (
    Measurement,
    limits,
    measure_rules,
)
from srpo_core.preflight.consistency import require_consistent
from srpo_core.report.page import rule_texts

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path("runs/evaluate/figures.parquet")


def choices(field):
    return set(typing.get_args(GateRule.model_fields[field].annotation))


def measured(low, high, value=0.0):
    return Measurement(value, low, high, 0.95, np.zeros(3))


def measure(make, rules, seed=0, **metrics):
    return measure_rules(rules, pair_up(make.table(**metrics), SOURCE), seed=seed, gate=make.gate(**rules))


def test_the_gate_supports_every_severity_and_side_of_the_settings(make):
    assert choices("severity") == set(SEVERITIES)
    for side in choices("side"):
        assert limits(make.rule(side=side)) != (None, None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"against": "absolute"},
            r"\.against is absolute, but compare difference needs against: base or champion",
        ),
        ({"compare": "value"}, r"\.against is base, but compare value needs against: absolute"),
        (
            {"against": "absolute", "compare": "value", "side": "within"},
            r"\.side: within needs a comparison with a",
        ),
        ({"side": "within", "margin": -0.1}, r"\.side: within needs .* the margin is -0\.1"),
        ({"tie": 0.05}, r"\.tie: difference has no ties: set compare to win_rate, or tie to 0"),
        (
            {"compare": "best_of"},
            r"\.compare: unknown comparison 'best_of': known are difference, factor, ratio, share, share_of",
        ),
    ],
)
def test_a_rule_with_inconsistent_settings_is_refused_with_its_key(make, changes, line):
    rules = {"better": make.rule(), "odd": make.rule(**changes)}
    for check in (require_valid_rules, lambda rules: measure(make, rules, quality=(0.0, 0.5))):
        with pytest.raises(ConfigError, match=rf"^gate\.rules\.odd{line}") as caught:
            check(rules)
        assert "\n" not in str(caught.value)


def both_means(rule):
    return [(ALIGNED, rule.metric, 0.0), (rule.against, rule.metric, 0.0)]


def test_a_new_comparison_needs_only_its_entry_to_be_checked_decided_and_plotted(make, register):
    """Add a log ratio: its entry alone defines the value, the format and the value at equality."""
    rule = make.rule(compare="log_ratio", margin=0.1)
    with pytest.raises(ConfigError, match="unknown comparison 'log_ratio'"):
        require_valid_rules({"better": rule})
    entry = Comparison(
        columns=both_means,
        statistic=lambda means: np.log(means[0] / means[1]),
        neutral=0.0,
        describe=lambda rule, value: f"log {rule.metric} rose by {value:.2f}",
        format=lambda value: f"{value:.2f}",
        label=lambda rule: f"log ratio to the {rule.against}",
        equality="equality",
    )
    register(COMPARISONS, "log_ratio", entry)
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    rules = {"better": rule.model_copy(update={"metric": "reward"}), **settings.gate.rules}
    require_consistent(
        settings.model_copy(update={"gate": settings.gate.model_copy(update={"rules": rules})})
    )
    uneven = 0.8 + 1e-6 * np.where(np.arange(12) % 4 < 2, 1, -1)[:, None]
    pairs = pair_up(make.table(quality=(0.5, uneven)), SOURCE)
    selection = {"admissible": [10], "reason": "it is best"}
    decision = decide(pairs, selection, seed=0, gate=make.gate(better=rule))
    [found] = decision["rules"]
    assert decision["passed"]
    assert found["value"] == pytest.approx(math.log(1.6))
    assert found["reason"].startswith(
        "log quality rose by 0.47 (95 % CI 0.47 … 0.47); the lower bound must be ≥ 0.10."
    )
    texts = rule_texts(found)
    assert (texts["label"], texts["texts"]["value"]) == ("log ratio to the base", "0.47")
    assert 'class="zero"' in texts["bar"]
    assert (
        chance_of_refusing_an_equal({"better": rule}, measure(make, {"better": rule}, quality=(0.5, 0.8)))
        is None
    )


def test_each_comparison_measures_our_model_relative_to_the_other(make):
    base, ours = np.array([[0.2, 0.4]] * 12), np.array([[0.3, 0.4]] * 12)
    rules = {
        name: make.rule(compare=name, against="base" if entry.needs_model else "absolute", side="at_most")
        for name, entry in COMPARISONS.items()
    }
    found = measure(make, rules, quality=(base, ours))
    values = {name: one.value for name, one in found.items()}
    related = {"difference": 0.05, "ratio": 0.35 / 0.3, "win_rate": 0.75, "factor": math.exp(0.05)}
    assert values == pytest.approx(related | {"value": 0.35, "whole": 0.3, "share": 0, "share_of_prompts": 0})
    swapped = measure(make, rules, quality=(ours, base))
    assert swapped["difference"].value == pytest.approx(-0.05)
    assert swapped["ratio"].value == pytest.approx(0.3 / 0.35)
    assert swapped["win_rate"].value == pytest.approx(0.25)


def test_a_difference_within_the_tie_counts_as_half_a_win(make):
    """A judge that gives two images 0.96 and 0.95 prefers neither."""
    rules = {"close": make.rule(compare="win_rate"), "even": make.rule(compare="win_rate", tie=0.05)}
    base, ours = np.array([[0.96, 0.10]] * 12), np.array([[0.95, 0.90]] * 12)
    found = measure(make, rules, quality=(base, ours))
    assert (found["close"].value, found["even"].value) == (0.5, 0.75)


def test_two_equal_models_give_the_neutral_value_of_each_comparison(make):
    figures = np.random.default_rng(0).random((12, 2)) + 0.1
    rules = {name: make.rule(compare=name) for name in ("difference", "ratio", "win_rate")}
    for name, one in measure(make, rules, quality=(figures, figures)).items():
        neutral = COMPARISONS[name].neutral
        assert one.value == pytest.approx(neutral)
        assert one.low < neutral < one.high, "no loss in twelve prompts does not prove that there is none"


def test_a_champion_rule_compares_with_the_champion_and_not_with_the_base(make):
    rules = {"kept": make.rule(against="champion", compare="win_rate")}
    assert measure(make, rules, quality=(0.9, 0.5, 0.4))["kept"].value == 1.0
    assert measure(make, rules, quality=(0.1, 0.5, 0.6))["kept"].value == 0.0
    assert measure(make, rules | {"own": make.rule()}, quality=(0.9, 0.5)).keys() == {"own"}


def test_each_style_is_weighted_by_its_number_of_prompts(make):
    figures = np.where(np.arange(12) % 2, 0.4, -0.2)[:, None]  # animals gain, food loses
    uneven = 1e-4 * np.where(np.arange(12) % 4 < 2, 1, -1)[:, None]
    found = measure(make, {"all": make.rule()}, quality=(0.0, figures + uneven))["all"]
    assert found.value == pytest.approx(0.1)
    # every resample has the same number of prompts per style
    assert (found.low, found.high) == pytest.approx((0.1, 0.1), abs=2e-4)


def test_a_ratio_to_a_mean_that_is_not_positive_is_nan(make):
    found = measure(make, {"share": make.rule(compare="ratio")}, quality=(-0.1, 0.5))["share"]
    assert math.isnan(found.value)
    assert "not above 0" in found.fault


def test_veto_and_hacking_rules_share_one_error_rate_and_refuse_rules_do_not(make):
    draw = np.random.default_rng(1).normal(0, 0.1, (12, 2))
    alone = measure(make, {"v0": make.rule(severity="veto")}, quality=(0.0, draw))["v0"]
    rules = {f"v{i}": make.rule(severity="veto" if i % 2 else "hacking") for i in range(10)}
    rules |= {f"r{i}": make.rule() for i in range(10)}
    together = measure(make, rules, quality=(0.0, draw))
    assert alone.confidence == together["r3"].confidence == 0.95
    assert together["v0"].confidence == pytest.approx(0.995)
    assert together["v0"].low < alone.low < alone.high < together["v0"].high
    assert (together["r3"].low, together["r3"].high) == (alone.low, alone.high)


@pytest.mark.parametrize("side", ["at_least", "at_most", "within"])
@pytest.mark.parametrize("severity", ["refuse", "veto"])
def test_the_rules_that_hold_agree_with_a_plain_comparison_of_intervals(make, side, severity):
    rules, ends, expected = {}, {}, {}
    points = [-1.0, -0.1, 0.0, 0.05, 0.1, 1.0]
    for low in points:
        for high in (p for p in points if p >= low):
            key = f"{low} to {high}"
            rules[key] = make.rule(side=side, margin=0.1, severity=severity)
            ends[key] = measured(low, high)
            least, greatest = {"at_least": (0.1, 9), "at_most": (-9, 0.1), "within": (-0.1, 0.1)}[side]
            inside = least <= low and high <= greatest
            outside = high < least or low > greatest
            expected[key] = inside if severity == "refuse" else not outside
    assert rules_that_hold(rules, ends, armed=True) == expected
    assert len(set(expected.values())) == 2


def test_a_figure_that_is_not_finite_breaks_its_rule(make):
    for severity in SEVERITIES:
        rules = dict.fromkeys(("nan", "inf", "fine"), make.rule(margin=0.0, severity=severity))
        found = {
            "nan": measured(math.nan, math.nan),
            "inf": measured(math.inf, math.inf),
            "fine": measured(1, 1),
        }
        assert rules_that_hold(rules, found, armed=False) == {"nan": False, "inf": False, "fine": True}


def test_a_hacking_rule_is_armed_only_by_the_objective(make):
    rules, ends = {"fell": make.rule(margin=-0.1, severity="hacking")}, {"fell": measured(-0.5, -0.3)}
    assert rules_that_hold(rules, ends, armed=True) == {"fell": False}
    assert rules_that_hold(rules, ends, armed=False) == {"fell": True}


def test_the_error_for_an_unknown_metric_lists_the_measured_ones(make):
    with pytest.raises(ConfigError, match="'beauty' is not in the evaluation: known are quality"):
        measure(make, {"better": make.rule(metric="beauty")}, quality=(0.0, 0.5))


SIGMA, MARGIN, WORLDS = 0.2, -0.12, 600


def test_the_chance_of_refusing_an_equal_model_agrees_with_simulation(make):
    world = np.random.default_rng(7)
    rules = {
        "kept": make.rule(margin=MARGIN),
        "band": make.rule(metric="colour", side="within", margin=0.2, severity="veto"),
        "gain": make.rule(margin=0.0),
    }

    pairs = pair_up(make.table(quality=(0.0, 0.0), colour=(0.0, 0.0)), SOURCE)
    gate = make.gate(**rules).model_copy(update={"resamples": 400})

    def draw():
        changed = {name: np.repeat(world.normal(0, SIGMA, 12), 2) for name in ("quality", "colour")}
        return measure_rules(rules, replace(pairs, aligned=changed), seed=0, gate=gate)

    worlds = [draw() for _ in range(WORLDS)]
    refused = [one["kept"].low < MARGIN or one["band"].high < -0.2 or one["band"].low > 0.2 for one in worlds]
    computed = [chance_of_refusing_an_equal(rules, one) for one in worlds]
    # an equal model's interval extends 2.2 standard errors of 0.058 down and crosses the margin half of the time
    assert 0.3 < np.mean(refused) < 0.7
    assert np.mean(computed) == pytest.approx(np.mean(refused), abs=0.06)


def test_a_ratio_far_above_one_does_not_widen_the_ratio_of_an_equal_model(make):
    """The logarithms rise by that of 1.9, with a standard error of 0.14: an equal model is hardly ever at half."""
    figures = np.log(1.9) + np.random.default_rng(2).normal(0, 0.5, (12, 1))
    rules = {"kept": make.rule(compare="factor", margin=0.5)}
    measured = measure(make, rules, quality=(0.0, figures))
    assert measured["kept"].value == pytest.approx(1.9, rel=0.3)
    assert chance_of_refusing_an_equal(rules, measured) < 0.03


def test_the_chance_of_refusing_an_equal_model_is_none_if_no_refuse_rule_allows_equality(make):
    rules = {"gain": make.rule(margin=0.0), "warned": make.rule(margin=-1.0, severity="warn")}
    assert chance_of_refusing_an_equal(rules, measure(make, rules, quality=(0.0, 0.5))) is None


def test_a_hacking_rule_with_zero_margin_counts_in_the_chance_of_refusing_an_equal_model(make):
    figures = np.random.default_rng(2).normal(0, 0.2, (12, 1))
    rules = {"not_traded": make.rule(margin=0.0, severity="hacking")}
    chance = chance_of_refusing_an_equal(rules, measure(make, rules, quality=(0.0, figures)))
    # the upper end of an equal model's 95 % interval is below 0 in one of forty cases
    assert chance is not None
    assert 0.0 < chance < 0.06


def test_the_chance_of_refusing_an_equal_model_is_none_if_a_rule_has_a_fault(make):
    rules = {"kept": make.rule(margin=-0.5), "share": make.rule(compare="ratio", margin=0.5)}
    assert chance_of_refusing_an_equal(rules, measure(make, rules, quality=(0.4, 0.5))) == 0.0
    broken = measure(make, rules, quality=(-0.1, 0.5))
    assert broken["share"].fault
    assert not broken["kept"].fault
    assert chance_of_refusing_an_equal(rules, broken) is None
