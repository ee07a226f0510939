"""Settings that undo the gate are refused before a run starts, and again when a verdict is computed."""

from pathlib import Path

import pytest

from srpo_core.config import GateRule, load_settings
from srpo_core.errors import ConfigError
from srpo_core.gates import verdict
from srpo_core.gates.completeness import Expected
from srpo_core.gates.effect import require_effect
from srpo_core.preflight.consistency import require_consistent

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "profiles/tiny.yaml"
EXPECTED = Expected((), 1, champion=False, metrics=(), sizes=(0,))


def settings_with(rules):
    whole = load_settings(TINY)
    return whole.model_copy(update={"gate": whole.gate.model_copy(update={"rules": rules})})


@pytest.mark.parametrize("severity", ["warn", "veto", "hacking"])
def test_a_gate_without_a_rule_that_must_be_shown_is_refused(severity):
    rules = {
        name: rule.model_copy(update={"severity": severity})
        for name, rule in load_settings(TINY).gate.rules.items()
        if rule.compare not in ("share", "share_of_prompts", "whole")  # never veto or hacking
    }
    with pytest.raises(ConfigError, match=r"^gate\.rules: none of \d+ rules has severity: refuse") as caught:
        require_consistent(settings_with(rules))
    assert "\n" not in str(caught.value)


def test_rules_against_the_champion_alone_do_not_check_a_first_model():
    rules = {
        name: rule for name, rule in load_settings(TINY).gate.rules.items() if rule.against == "champion"
    }
    with pytest.raises(ConfigError, match="a first model would pass without a proof"):
        require_consistent(settings_with(rules))


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": 0.0},
        {"margin": -1.0},
        {"margin": 1.0, "side": "at_most"},
        {"margin": 0.5, "side": "within"},
        {"margin": 0.0, "severity": "veto"},
    ],
)
def test_a_win_rate_whose_margin_no_model_can_miss_is_refused(changes, make):
    rules = {"kept": make.rule(), "wins": make.rule(compare="win_rate", **changes)}
    with pytest.raises(
        ConfigError, match=r"^gate\.rules\.wins\.margin is \S+, but win_rate is always between 0 and 1"
    ):
        require_effect(rules)


@pytest.mark.parametrize("compare", ["share", "share_of_prompts"])
def test_a_share_that_may_be_everything_is_refused(compare, make):
    changes = {"compare": compare, "against": "absolute", "side": "at_most"}
    require_effect({"kept": make.rule(), "few": make.rule(**changes, margin=0.05)})
    with pytest.raises(ConfigError, match=rf"margin is 1, but {compare} is always between 0 and 1"):
        require_effect({"kept": make.rule(), "few": make.rule(**changes, margin=1.0)})


@pytest.mark.parametrize(
    "changes", [{"margin": 0.01}, {"margin": 0.99, "side": "at_most"}, {"margin": 0.49, "side": "within"}]
)
def test_a_win_rate_with_a_margin_that_can_be_missed_is_accepted(changes, make):
    require_effect({"kept": make.rule(), "wins": make.rule(compare="win_rate", **changes)})


def test_a_verdict_by_rules_without_effect_is_refused_whatever_the_figures_are(make):
    gate = make.gate(warned=make.rule(severity="warn"))
    with pytest.raises(ConfigError, match="would pass without a proof"):
        verdict(make.table(quality=(0.1, 0.9)), {}, EXPECTED, seed=0, gate=gate)


@pytest.mark.parametrize(
    ("key", "value"),
    [("confidence", 0.79), ("confidence", 0.5), ("confidence", 1.0)],
)
def test_a_confidence_that_undoes_the_gate_is_refused_when_the_settings_are_read(tmp_path, key, value):
    text = TINY.read_text().replace("  confidence: 0.95", f"  {key}: {value}")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"gate\.confidence") as caught:
        load_settings(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)
    (tmp_path / "params.yaml").write_text(text.replace(f"confidence: {value}", "confidence: 0.8"))
    assert load_settings(tmp_path / "params.yaml").gate.confidence == 0.8


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", ["margin", "tie"])
def test_a_limit_that_is_not_a_finite_number_is_refused(make, key, value):
    with pytest.raises(ValueError, match=key):
        GateRule.model_validate(make.rule().model_dump() | {key: value})
