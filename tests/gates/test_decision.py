import json
from pathlib import Path

import numpy as np
import pytest

from srpo_core.errors import ConfigError, GateError
from srpo_core.gates import decide, require_passed
from srpo_core.gates.pairs import pair_up

SELECTION = {"step": 20, "admissible": [10, 20], "reason": "step 20 is best"}
SOURCE = Path("runs/evaluate/images.parquet")


def decision(table, gate, selection=SELECTION, seed=0):
    return decide(pair_up(table, SOURCE), selection, seed=seed, gate=gate)


def noisy(mean, seed=0, spread=0.02):
    return np.random.default_rng(seed).normal(mean, spread, (12, 2))


def test_a_clear_gain_passes_with_its_figures(make):
    result = decision(make.table(quality=(0.25, 0.5)), make.gate(better=make.rule()))
    assert result["passed"] is True
    assert result["verdict"] == "passed"
    [rule] = result["rules"]
    assert (rule["value"], rule["low"], rule["high"]) == (0.25, 0.25, 0.25)
    assert rule["passed"] is True
    assert "the pictures are better than before" in result["reason"]
    assert "24 pairs of pictures of 12 test prompts" in result["reason"]


def test_swapping_base_and_aligned_turns_a_pass_into_a_refusal(make):
    figures = (noisy(0.3, 1), noisy(0.5, 2))
    rules = make.gate(better=make.rule())
    won = decision(make.table(quality=figures), rules)
    lost = decision(make.table(quality=figures[::-1]), rules)
    assert (won["verdict"], lost["verdict"]) == ("passed", "refused")
    assert won["rules"][0]["value"] == pytest.approx(0.2, abs=0.02)
    assert won["rules"][0]["value"] == pytest.approx(-lost["rules"][0]["value"])


def test_a_constant_loss_of_the_subject_is_refused_and_said(make):
    rules = make.gate(kept=make.rule(bound="mean", at_least=-0.1, meaning="the subject is kept"))
    result = decision(make.table(quality=(0.9, 0.7)), rules)
    assert result["verdict"] == "refused"
    assert result["reason"] == (
        "kept: quality changed by -0.200 (95% interval -0.200 to -0.200); the mean had to be at least -0.100 "
        "and is not, so it is not shown that the subject is kept."
    )


def test_the_bound_that_the_rule_names_is_the_one_that_is_judged(make):
    figures = (0.0, noisy(0.05, 4, spread=0.2))
    rules = make.gate(
        lower=make.rule(bound="lower", at_least=0.0),
        mean=make.rule(bound="mean", at_least=0.0),
        upper=make.rule(bound="upper", at_least=0.0),
        capped=make.rule(bound="upper", at_least=None, at_most=0.06),
    )
    result = {entry["name"]: entry for entry in decision(make.table(quality=figures), rules)["rules"]}
    assert result["lower"]["low"] < 0 < result["lower"]["value"] < result["lower"]["high"]
    assert [result[name]["passed"] for name in ("lower", "mean", "upper", "capped")] == [
        False,
        True,
        True,
        False,
    ]
    assert result["lower"]["low"] == result["upper"]["low"]


def test_an_absolute_rule_ignores_the_base(make):
    rules = make.gate(high=make.rule(against="absolute", bound="mean", at_least=0.8))
    assert decision(make.table(quality=(0.5, 0.9)), rules)["passed"] is True
    assert decision(make.table(quality=(0.99, 0.7)), rules)["passed"] is False


def test_seeds_of_one_prompt_are_not_independent_evidence(make):
    by_prompt = np.random.default_rng(8).normal(0.1, 0.2, (12, 1))
    rules = make.gate(better=make.rule())
    [together] = decision(make.table(quality=(0.0, np.repeat(by_prompt, 2, axis=1))), rules)["rules"]
    expected = 2 * 1.96 * by_prompt.std() / np.sqrt(12)
    assert together["high"] - together["low"] == pytest.approx(expected, rel=0.15)


def test_a_broken_warning_passes_and_is_said(make):
    rules = make.gate(better=make.rule(), colour=make.rule(metric="colour", severity="warn"))
    result = decision(make.table(quality=(0.0, 0.5), colour=(0.5, 0.0)), rules)
    assert result["verdict"] == "passed"
    assert "1 of 2 rules as a warning: colour: colour changed by -0.500" in result["reason"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_figure_that_is_not_a_number_refuses_and_is_named(make, bad, side):
    broken = np.full((12, 2), 0.9)
    broken[3, 1] = bad
    figures = [0.0, 0.9]
    figures[side] = broken
    result = decision(make.table(quality=figures), make.gate(better=make.rule()))
    assert result["verdict"] == "refused"
    assert "not a number in 1 of the pairs of pictures (first: prompt 'prompt 3', seed 1)" in result["reason"]
    assert result["rules"][0]["value"] is None
    json.dumps(result, allow_nan=False)


def test_one_prompt_gives_no_interval_and_so_no_proof(make):
    table = make.table(quality=(0.0, 0.9))
    one = table.filter([prompt == "prompt 0" for prompt in table["prompt"].to_pylist()])
    result = decision(one, make.gate(better=make.rule()))
    assert result["verdict"] == "refused"
    assert "raise evaluate.num_prompts" in result["reason"]


def test_no_admissible_checkpoint_refuses_even_when_every_rule_holds(make):
    selection = {"step": 5, "admissible": [], "reason": "every checkpoint lost the subject."}
    result = decision(make.table(quality=(0.0, 0.5)), make.gate(better=make.rule()), selection)
    assert result["verdict"] == "refused"
    assert result["reason"] == "no checkpoint was admissible: every checkpoint lost the subject."
    assert result["rules"][0]["passed"] is True


def test_an_unknown_metric_lists_the_columns(make):
    with pytest.raises(ConfigError, match="'beauty' is not a column of the evaluation: known are quality"):
        decision(make.table(quality=(0.0, 0.5)), make.gate(better=make.rule(metric="beauty")))


def test_adding_a_rule_changes_no_other_rules_interval(make):
    table = make.table(quality=(0.0, noisy(0.2)), colour=(0.0, noisy(0.1, 5)))
    alone = decision(table, make.gate(better=make.rule()))["rules"][0]
    second = decision(table, make.gate(first=make.rule(metric="colour"), better=make.rule()))["rules"][1]
    assert alone == second


def test_a_refused_decision_stops_whoever_asks_with_its_reason():
    with pytest.raises(GateError, match="the subject is lost") as caught:
        require_passed({"passed": False, "reason": "the subject is lost."})
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("decision", [{}, {"passed": "yes"}, {"passed": None}, {"verdict": "passed"}])
def test_only_a_plain_true_passes(decision):
    with pytest.raises(GateError):
        require_passed(decision)


def test_a_passed_decision_goes_through():
    require_passed({"passed": True, "reason": "every rule holds"})
