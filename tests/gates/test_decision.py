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

# of the table (0.25, 0.5): up to 26 % of the prompts may lose 0.25 and not be among the twelve
LEAST_GAIN = 0.25 - 0.5 * (1 - 0.025 ** (1 / 12))


def decision(table, gate, selection=SELECTION, seed=0):
    return decide(pair_up(table, SOURCE), selection, seed=seed, gate=gate)


def noisy(mean, seed=0, spread=0.02):
    return np.random.default_rng(seed).normal(mean, spread, (12, 2))


def test_a_clear_gain_passes_and_the_decision_contains_its_figures(make):
    result = decision(make.table(quality=(0.25, 0.5)), make.gate(better=make.rule()))
    assert result["passed"] is True
    assert result["verdict"] == "passed"
    assert result["schema_version"] == 2
    [rule] = result["rules"]
    assert rule["value"] == 0.25
    assert (rule["low"], rule["high"]) == (pytest.approx(LEAST_GAIN, abs=0.01), 0.25)
    assert (rule["passed"], rule["verdict"]) == (True, "holds")
    assert "the images are better than before" in result["reason"]
    assert "24 image pairs of 12 test prompts" in result["reason"]
    assert result["objective"] == {"metric": "quality", "rose": True, "confidence": 0.95} | {
        key: rule[key] for key in ("value", "low", "high")
    }


def test_swapping_base_and_aligned_turns_a_pass_into_a_refusal(make):
    figures = (noisy(0.3, 1), noisy(0.5, 2))
    rules = make.gate(better=make.rule())
    won = decision(make.table(quality=figures), rules)
    lost = decision(make.table(quality=figures[::-1]), rules)
    assert (won["verdict"], lost["verdict"]) == ("passed", "refused")
    assert won["rules"][0]["value"] == pytest.approx(0.2, abs=0.02)
    assert won["rules"][0]["value"] == pytest.approx(-lost["rules"][0]["value"])


def test_a_loss_of_the_subject_is_refused_with_a_reason(make):
    rules = make.gate(kept=make.rule(margin=-0.1, meaning="the subject is kept"))
    result = decision(make.table(quality=(0.9, np.where(np.arange(12) % 4 < 2, 0.65, 0.75)[:, None])), rules)
    assert result["verdict"] == "refused"
    assert result["reason"] == (
        "kept: quality changed by -0.200 against the base (95 % CI -0.233 … -0.167); the lower bound must be "
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
def test_the_reason_for_every_kind_of_breach_states_the_figure_and_the_limit(make, changes, said):
    result = decision(make.table(quality=(0.6, 0.3)), make.gate(one=make.rule(**changes)))
    assert result["verdict"] == "refused"
    assert said in result["reason"]
    assert "\n" not in result["reason"]


def test_an_inconclusive_interval_breaks_a_refuse_rule_but_not_a_veto(make):
    figures = (0.0, noisy(-0.05, 4, spread=0.2))
    rules = make.gate(shown=make.rule(margin=-0.1), veto=make.rule(margin=-0.1, severity="veto"))
    shown, veto = decision(make.table(quality=figures), rules)["rules"]
    assert shown["low"] < -0.1 < shown["high"]
    assert (shown["passed"], veto["passed"]) == (False, True)


def test_a_rising_objective_with_a_falling_subject_is_reported_as_reward_hacking(make):
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


def test_hacking_rules_still_apply_if_the_objective_is_nan(make):
    falls = make.rule(metric="subject", margin=-0.1, severity="hacking", meaning="the subject is kept")
    gate = make.gate("objective", not_traded=falls)
    result = decision(make.table(objective=(0.2, float("nan")), subject=(0.9, noisy(0.5, 1))), gate)
    assert result["objective"]["rose"] is None
    assert result["verdict"] == "refused"
    assert "it is unknown whether the training objective rose" in result["reason"]


def test_a_figure_above_or_below_its_band_is_vetoed(make):
    gate = make.gate(colour=make.rule(side="within", margin=0.1, severity="veto", meaning="colours stay"))
    for change, verdict in ((0.0, "passed"), (0.09, "passed"), (0.3, "refused"), (-0.3, "refused")):
        assert decision(make.table(quality=(0.5, noisy(0.5 + change, 3))), gate)["verdict"] == verdict
    passed = decision(make.table(quality=(0.5, 0.5)), gate)
    assert passed["reason"].endswith("None of 1 signs of reward hacking was found.")


def test_champion_rules_apply_only_if_there_is_a_champion(make):
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


def test_a_broken_warn_rule_passes_and_is_reported(make):
    rules = make.gate(better=make.rule(), colour=make.rule(metric="colour", severity="warn"))
    result = decision(make.table(quality=(0.0, 0.5), colour=(0.5, 0.0)), rules)
    assert result["verdict"] == "passed"
    assert result["rules"][1]["verdict"] == "warns"
    assert "1 of 2 rules warn: colour: colour changed by -0.500" in result["reason"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("severity", ["refuse", "veto", "hacking"])
def test_a_figure_that_is_not_finite_is_refused_with_its_prompt_and_seed(make, bad, side, severity):
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
def test_too_few_prompts_give_no_interval_and_are_refused(make, severity, count):
    table = make.table(quality=(0.0, 0.9))
    kept = {f"prompt {number}" for number in range(count)}
    few = table.filter([prompt in kept for prompt in table["prompt"].to_pylist()])
    result = decision(few, make.gate(better=make.rule(severity=severity)))
    assert result["verdict"] == "refused"
    assert f"{count} prompts of {min(count, 2)} styles are too few for an interval" in result["reason"]
    assert "Not shown: the images are better than before" in result["reason"]


def test_too_few_resamples_are_refused_instead_of_giving_a_zero_width_interval(make):
    gate = make.gate(better=make.rule()).model_copy(update={"resamples": 1})
    result = decision(make.table(quality=(0.0, noisy(0.9))), gate)
    assert result["verdict"] == "refused"
    assert "1 resamples are too few for an interval of 95%: raise gate.resamples to 200" in result["reason"]


def test_without_an_admissible_checkpoint_the_gate_refuses_even_if_every_rule_holds(make):
    selection = {"step": 5, "admissible": [], "reason": "every checkpoint lost the subject."}
    result = decision(make.table(quality=(0.0, 0.5)), make.gate(better=make.rule()), selection)
    assert result["verdict"] == "refused"
    assert result["reason"] == "no checkpoint was admissible: every checkpoint lost the subject."
    assert result["rules"][0]["passed"] is True


def test_the_error_names_an_objective_that_was_not_measured(make):
    with pytest.raises(ConfigError, match="'relative_reward' is not in the evaluation"):
        decision(make.table(quality=(0.0, 0.5)), make.gate("relative_reward", better=make.rule()))


def test_adding_a_rule_does_not_change_the_interval_of_another_rule(make):
    table = make.table(quality=(0.0, noisy(0.2)), colour=(0.0, noisy(0.1, 5)))
    alone = decision(table, make.gate(better=make.rule()))["rules"][0]
    second = decision(table, make.gate(first=make.rule(metric="colour"), better=make.rule()))["rules"][1]
    assert alone == second


def test_the_dvc_metrics_contain_the_figures_of_each_rule(make):
    figures = rule_figures(decision(make.table(quality=(0.25, 0.5)), make.gate(better=make.rule())))
    low = figures["rules"]["better"]["low"]
    assert low == pytest.approx(LEAST_GAIN, abs=0.01)
    assert figures == {
        "passed": True,
        "rules": {"better": {"value": 0.25, "low": low, "high": 0.25, "passed": True}},
    }


def test_a_refused_decision_raises_its_reason():
    with pytest.raises(GateError, match="the subject is lost") as caught:
        require_passed({"passed": False, "reason": "the subject is lost."})
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("decision", [{}, {"passed": "yes"}, {"passed": None}, {"verdict": "passed"}])
def test_only_passed_true_is_accepted(decision):
    with pytest.raises(GateError):
        require_passed(decision)


def test_a_passed_decision_is_accepted():
    require_passed({"schema_version": SCHEMA_VERSION, "passed": True, "reason": "every rule holds"})


@pytest.mark.parametrize(
    "version", [{}, {"schema_version": 1}, {"schema_version": 3}, {"schema_version": "2"}]
)
def test_a_passed_decision_of_another_schema_version_is_an_error_with_the_command_to_run(version):
    with pytest.raises(ArtifactError) as caught:
        require_passed({"passed": True, "reason": "every rule holds"} | version)
    assert str(caught.value) == (
        f"runs/gate/decision.json has schema version {version.get('schema_version')!r}, known is 2: "
        "run 'dvc repro --force -s gate' to decide anew"
    )


def test_a_refused_decision_of_another_schema_version_is_still_refused():
    with pytest.raises(GateError, match="the subject is lost"):
        require_passed({"schema_version": 1, "passed": False, "reason": "the subject is lost."})
