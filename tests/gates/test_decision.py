import json
from pathlib import Path

import numpy as np
import pytest

from srpo_core.errors import ArtifactError, ConfigError, GateError
from srpo_core.gates import decide, require_passed
from srpo_core.gates.decision import SCHEMA_VERSION, rule_figures
from srpo_core.gates.pairs import pair_up

SELECTION = {"step": 20, "admissible": [10, 20], "reason": "step 20 is best"}
SOURCE = Path("runs/evaluate/figures.parquet")


def decision(table, gate, selection=SELECTION, seed=0):
    return decide(pair_up(table, SOURCE), selection, seed=seed, gate=gate)


def noisy(mean, seed=0, spread=0.02):
    return np.random.default_rng(seed).normal(mean, spread, (12, 2))


def test_a_clear_gain_passes_with_its_figures(make):
    result = decision(make.table(quality=(0.25, 0.5)), make.gate(better=make.rule()))
    assert result["passed"] is True
    assert result["verdict"] == "passed"
    assert result["schema_version"] == 2
    [rule] = result["rules"]
    assert (rule["value"], rule["low"], rule["high"]) == (0.25, 0.25, 0.25)
    assert (rule["passed"], rule["verdict"]) == (True, "holds")
    assert "the images are better than before" in result["reason"]
    assert "24 image pairs of 12 test prompts" in result["reason"]
    assert result["objective"] == {"metric": "quality", "rose": True, "value": 0.25, "low": 0.25, "high": 0.25, "confidence": 0.95}  # fmt: skip


def test_swapping_base_and_aligned_turns_a_pass_into_a_refusal(make):
    figures = (noisy(0.3, 1), noisy(0.5, 2))
    rules = make.gate(better=make.rule())
    won = decision(make.table(quality=figures), rules)
    lost = decision(make.table(quality=figures[::-1]), rules)
    assert (won["verdict"], lost["verdict"]) == ("passed", "refused")
    assert won["rules"][0]["value"] == pytest.approx(0.2, abs=0.02)
    assert won["rules"][0]["value"] == pytest.approx(-lost["rules"][0]["value"])


def test_a_constant_loss_of_the_subject_is_refused_and_said(make):
    rules = make.gate(kept=make.rule(margin=-0.1, meaning="the subject is kept"))
    result = decision(make.table(quality=(0.9, 0.7)), rules)
    assert result["verdict"] == "refused"
    assert result["reason"] == (
        "kept: quality changed by -0.200 against the base (95 % CI -0.200 … -0.200); the lower bound must be "
        "≥ -0.100. Not shown: the subject is kept."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compare": "ratio", "margin": 0.8}, "quality is 0.500 times that of the base"),
        ({"compare": "win_rate", "margin": 0.5}, "by quality, 0.0% of the images beat those of the base"),
        (
            {"compare": "win_rate", "margin": 0.5, "tie": 0.01},
            "0.0% of the images beat those of the base (differences up to 0.01 count as half a win)",
        ),
        (
            {"against": "absolute", "compare": "value", "margin": 0.9},
            "quality is 0.300 (95 % CI 0.300 …",
        ),
        (
            {"side": "within", "margin": 0.1},
            "the whole interval must be within ±0.1 of no change. Not shown: ",
        ),
        ({"side": "at_most", "margin": -0.4}, "the upper bound must be ≤ -0.400. Not shown: "),
        ({"severity": "veto", "margin": -0.1}, "no part of the interval is ≥ -0.100. No longer true: "),
    ],
)
def test_every_kind_of_breach_says_what_was_seen_and_what_was_asked(make, changes, said):
    result = decision(make.table(quality=(0.6, 0.3)), make.gate(one=make.rule(**changes)))
    assert result["verdict"] == "refused"
    assert said in result["reason"]
    assert "\n" not in result["reason"]


def test_a_rule_to_be_shown_fails_where_a_veto_does_not_bite_yet(make):
    figures = (0.0, noisy(-0.05, 4, spread=0.2))
    rules = make.gate(shown=make.rule(margin=-0.1), veto=make.rule(margin=-0.1, severity="veto"))
    shown, veto = decision(make.table(quality=figures), rules)["rules"]
    assert shown["low"] < -0.1 < shown["high"]
    assert (shown["passed"], veto["passed"]) == (False, True)


def test_an_objective_that_rises_while_the_subject_falls_is_called_reward_hacking(make):
    falls = make.rule(metric="subject", margin=-0.1, severity="hacking", meaning="the subject is kept")
    gate = make.gate("objective", not_traded=falls)
    subject = (0.9, noisy(0.5, 1))
    hacked = decision(make.table(objective=(0.2, noisy(0.6, 2)), subject=subject), gate)
    assert hacked["objective"]["rose"] is True
    assert hacked["verdict"] == "refused"
    assert "while the training objective rose: the pattern of reward hacking" in hacked["reason"]
    honest = decision(make.table(objective=(0.6, noisy(0.6, 2)), subject=subject), gate)
    assert honest["objective"]["rose"] is False
    assert honest["rules"][0]["verdict"] == "holds"


def test_an_objective_that_is_not_a_number_disarms_no_sign_of_hacking(make):
    falls = make.rule(metric="subject", margin=-0.1, severity="hacking", meaning="the subject is kept")
    gate = make.gate("objective", not_traded=falls)
    result = decision(make.table(objective=(0.2, float("nan")), subject=(0.9, noisy(0.5, 1))), gate)
    assert result["objective"]["rose"] is None
    assert result["verdict"] == "refused"
    assert "it is unknown whether the training objective rose" in result["reason"]


def test_a_figure_that_leaves_its_band_on_either_side_is_vetoed(make):
    gate = make.gate(colour=make.rule(side="within", margin=0.1, severity="veto", meaning="colours stay"))
    for change, verdict in ((0.0, "passed"), (0.09, "passed"), (0.3, "refused"), (-0.3, "refused")):
        assert decision(make.table(quality=(0.5, noisy(0.5 + change, 3))), gate)["verdict"] == verdict
    passed = decision(make.table(quality=(0.5, 0.5)), gate)
    assert passed["reason"].endswith("None of 1 signs of reward hacking was found.")


def test_without_a_champion_its_rules_do_not_apply_and_with_one_they_do(make):
    gate = make.gate(better=make.rule(), champion=make.rule(against="champion", margin=-0.05))
    first = decision(make.table(quality=(0.2, 0.5)), gate)
    assert first["passed"] is True
    assert first["rules"][1]["verdict"] == "does not apply"
    assert first["rules"][1]["value"] is None
    assert "there is no champion to compare with, so the rule does not apply" in first["rules"][1]["reason"]
    behind = decision(make.table(quality=(0.2, 0.5, 0.8)), gate)
    assert behind["verdict"] == "refused"
    assert "quality changed by -0.300 against the champion" in behind["reason"]


def test_seeds_of_one_prompt_are_not_independent_evidence(make):
    by_prompt = np.random.default_rng(8).normal(0.1, 0.2, (12, 1))
    rules = make.gate(better=make.rule())
    [together] = decision(make.table(quality=(0.0, np.repeat(by_prompt, 2, axis=1))), rules)["rules"]
    apart = by_prompt.reshape(6, 2)
    within = np.sqrt(apart.var(axis=0, ddof=1).mean() / 12)
    assert together["high"] - together["low"] == pytest.approx(2 * 2.228 * within, rel=0.15)


def test_a_broken_warning_passes_and_is_said(make):
    rules = make.gate(better=make.rule(), colour=make.rule(metric="colour", severity="warn"))
    result = decision(make.table(quality=(0.0, 0.5), colour=(0.5, 0.0)), rules)
    assert result["verdict"] == "passed"
    assert result["rules"][1]["verdict"] == "warns"
    assert "1 of 2 rules warn: colour: colour changed by -0.500" in result["reason"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("severity", ["refuse", "veto", "hacking"])
def test_a_figure_that_is_not_a_number_refuses_and_is_named(make, bad, side, severity):
    broken = np.full((12, 2), 0.9)
    broken[3, 1] = bad
    figures = [0.0, 0.9]
    figures[side] = broken
    result = decision(make.table(quality=figures), make.gate(better=make.rule(severity=severity)))
    assert result["verdict"] == "refused"
    assert "not a finite number in 1 image pairs (first: prompt 'prompt 3', seed 1)" in result["reason"]
    assert result["rules"][0]["value"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("severity", ["refuse", "veto", "hacking"])
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_a_handful_of_prompts_gives_no_interval_and_so_no_lucky_pass(make, severity, count):
    table = make.table(quality=(0.0, 0.9))
    kept = {f"prompt {number}" for number in range(count)}
    few = table.filter([prompt in kept for prompt in table["prompt"].to_pylist()])
    result = decision(few, make.gate(better=make.rule(severity=severity)))
    assert result["verdict"] == "refused"
    assert f"{count} prompts of {min(count, 2)} styles are too few for an interval" in result["reason"]
    assert "Not shown: the images are better than before" in result["reason"]


def test_too_few_resamples_refuse_in_place_of_an_interval_without_a_width(make):
    gate = make.gate(better=make.rule()).model_copy(update={"resamples": 1})
    result = decision(make.table(quality=(0.0, noisy(0.9))), gate)
    assert result["verdict"] == "refused"
    assert "1 resamples are too few for an interval of 95%: raise gate.resamples to 200" in result["reason"]


def test_no_admissible_checkpoint_refuses_even_when_every_rule_holds(make):
    selection = {"step": 5, "admissible": [], "reason": "every checkpoint lost the subject."}
    result = decision(make.table(quality=(0.0, 0.5)), make.gate(better=make.rule()), selection)
    assert result["verdict"] == "refused"
    assert result["reason"] == "no checkpoint was admissible: every checkpoint lost the subject."
    assert result["rules"][0]["passed"] is True


def test_an_objective_that_was_not_measured_is_named(make):
    with pytest.raises(ConfigError, match="'relative_reward' is not in the evaluation"):
        decision(make.table(quality=(0.0, 0.5)), make.gate("relative_reward", better=make.rule()))


def test_adding_a_rule_changes_no_other_rules_interval(make):
    table = make.table(quality=(0.0, noisy(0.2)), colour=(0.0, noisy(0.1, 5)))
    alone = decision(table, make.gate(better=make.rule()))["rules"][0]
    second = decision(table, make.gate(first=make.rule(metric="colour"), better=make.rule()))["rules"][1]
    assert alone == second


def test_the_figures_for_dvc_are_numbers_by_rule(make):
    figures = rule_figures(decision(make.table(quality=(0.25, 0.5)), make.gate(better=make.rule())))
    assert figures == {
        "passed": True,
        "rules": {"better": {"value": 0.25, "low": 0.25, "high": 0.25, "passed": True}},
    }


def test_a_refused_decision_stops_whoever_asks_with_its_reason():
    with pytest.raises(GateError, match="the subject is lost") as caught:
        require_passed({"passed": False, "reason": "the subject is lost."})
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("decision", [{}, {"passed": "yes"}, {"passed": None}, {"verdict": "passed"}])
def test_only_a_plain_true_passes(decision):
    with pytest.raises(GateError):
        require_passed(decision)


def test_a_passed_decision_goes_through():
    require_passed({"schema_version": SCHEMA_VERSION, "passed": True, "reason": "every rule holds"})


@pytest.mark.parametrize(
    "version", [{}, {"schema_version": 1}, {"schema_version": 3}, {"schema_version": "2"}]
)
def test_a_decision_of_another_schema_lets_nothing_through_and_says_which_and_what_to_run(version):
    with pytest.raises(ArtifactError) as caught:
        require_passed({"passed": True, "reason": "every rule holds"} | version)
    assert str(caught.value) == (
        f"runs/gate/decision.json has schema version {version.get('schema_version')!r}, known is 2: "
        "run 'dvc repro --force -s gate' to decide anew"
    )


def test_a_decision_of_another_schema_that_refused_is_still_a_refusal():
    with pytest.raises(GateError, match="the subject is lost"):
        require_passed({"schema_version": 1, "passed": False, "reason": "the subject is lost."})
