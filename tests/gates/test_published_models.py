"""The full-size gate applied to published figures (arXiv 2509.06942, table 1; re-test: arXiv 2512.24146)."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srpo_core.config import load_settings
from srpo_core.gates import decide
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.rules import BY_PROOF_OF_BREACH, limits

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ["flux1_dev", "flux1_dev_lora"]
# SGP-HPS, HPSv2.1, PickScore / 20 (our scale), GenEval, and diversity as a share of the base's
BASE = {
    "relative_reward": 0.463,
    "reward": 0.289,
    "judge_score": 22.671 / 20,
    "alignment": 0.678,
    "diversity": 0.408,
    # what the papers do not report: no damage
    **dict.fromkeys(("broken", "copied", "repeated", "common_edge", "uneven_phases", "spectral_peak"), 0.0),
}
TABLE = {
    "SRPO": {"relative_reward": 0.505, "reward": 0.289, "judge_score": 23.040 / 20, "alignment": 0.665},
    "DanceGRPO": {"relative_reward": 0.414, "reward": 0.297, "judge_score": 22.803 / 20, "alignment": 0.585},
    "Direct-Align": {
        "relative_reward": 0.448,
        "reward": 0.294,
        "judge_score": 23.030 / 20,
        "alignment": 0.668,
    },
    "ReFL": {"relative_reward": 0.470, "reward": 0.298, "judge_score": 22.975 / 20, "alignment": 0.656},
    "DRaFT-LV": {"relative_reward": 0.458, "reward": 0.296, "judge_score": 22.932 / 20, "alignment": 0.636},
}
# the re-test: GenEval .663 -> .623, diversity .408 -> .352
RETESTED = TABLE["SRPO"] | {"alignment": 0.678 * 0.623 / 0.663, "diversity": 0.352}
# spread of an image's change around the mean change, relative to the base's figure; assumed, since it is not published
SPREAD = {"relative_reward": 0.15, "reward": 0.05, "judge_score": 0.03, "alignment": 0.1, "diversity": 0.1}
SELECTION = {"step": 10, "admissible": [10], "reason": "it is best"}


def pairs_of(settings, after):
    prompts, seeds = settings.evaluate.num_prompts, settings.evaluate.seeds_per_prompt
    draw, count = np.random.default_rng(0), prompts * seeds
    metrics = [*settings.evaluate.metrics, *settings.evaluate.scorers]
    base, aligned = {}, {}
    for name in metrics:
        start = BASE.get(name, 0.3)
        base[name] = np.full(count, start)
        change = draw.normal(0, SPREAD.get(name, 0.05) * start, count)
        aligned[name] = base[name] + change - change.mean() + after.get(name, start) - start
    styles = ("anime", "concept-art", "paintings", "photo")
    return Pairs(
        prompts=tuple(str(number) for number in range(prompts)),
        styles=tuple(styles[number * 4 // prompts] for number in range(prompts)),
        prompt_index=np.repeat(np.arange(prompts), seeds),
        seeds=np.tile(np.arange(seeds), prompts),
        base=base,
        aligned=aligned,
        champion=None,
    )


def decision(profile, after):
    settings = load_settings(ROOT / f"profiles/{profile}.yaml")
    result = decide(pairs_of(settings, after), SELECTION, seed=0, gate=settings.gate)
    return result["verdict"], {rule["name"] for rule in result["rules"] if rule["verdict"] == "refuses"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("after", [TABLE["SRPO"], RETESTED], ids=["published", "re-tested"])
def test_the_model_of_the_paper_passes_although_its_training_reward_did_not_rise(profile, after):
    assert decision(profile, after) == ("passed", set())


@pytest.mark.parametrize("profile", PROFILES)
def test_dance_grpo_is_refused_for_its_objective_and_its_prompt_alignment(profile):
    verdict, broken = decision(profile, TABLE["DanceGRPO"])
    assert verdict == "refused"
    assert {"objective_gained", "alignment_kept"} <= broken


def test_direct_align_without_the_relative_reward_is_refused_only_for_its_objective():
    assert decision("flux1_dev", TABLE["Direct-Align"]) == ("refused", {"objective_gained"})


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["ReFL", "DRaFT-LV"])
def test_refl_and_draft_lv_are_refused_although_their_reward_and_judge_score_rose(profile, name):
    verdict, broken = decision(profile, TABLE[name])
    assert verdict == "refused"
    assert "objective_gained" in broken
    assert not broken & {"judge_wins", "reward_kept", "diversity_kept"}, "reward and judge rose"


def test_a_model_equal_to_the_base_breaks_only_the_gain_rules():
    assert decision("flux1_dev", {}) == ("refused", {"objective_gained", "judge_wins"})


@pytest.mark.parametrize("profile", ["tiny", *PROFILES])
def test_an_unchanged_copy_of_the_base_is_refused_by_every_preset(profile):
    settings = load_settings(ROOT / f"profiles/{profile}.yaml")
    gained = pairs_of(settings, TABLE["SRPO"])
    result = decide(replace(gained, aligned=gained.base), SELECTION, seed=0, gate=settings.gate)
    broken = {rule["name"] for rule in result["rules"] if rule["verdict"] == "refuses"}
    assert result["verdict"] == "refused"
    assert "objective_gained" in broken
    assert re.search(r"the lower bound must be > (\+0\.000|50\.0%)\. Not shown: ", result["reason"])


@pytest.mark.parametrize(("share", "verdict"), [(0.86, "passed"), (0.75, "refused")])
def test_diversity_may_fall_to_the_re_tested_86_percent_but_not_to_75_percent(share, verdict):
    found, broken = decision("flux1_dev", TABLE["SRPO"] | {"diversity": 0.408 * share})
    assert found == verdict
    assert broken <= {"diversity_kept"}


@pytest.mark.parametrize("profile", ["tiny", *PROFILES])
def test_no_veto_or_hacking_rule_is_implied_by_a_refuse_rule(profile):
    rules = load_settings(ROOT / f"profiles/{profile}.yaml").gate.rules
    shown = {name: one for name, one in rules.items() if one.severity == "refuse"}
    for name, sign in rules.items():
        if sign.severity not in BY_PROOF_OF_BREACH:
            continue
        least, greatest = limits(sign)
        for other, rule in shown.items():
            if (rule.metric, rule.against, rule.compare) != (sign.metric, sign.against, sign.compare):
                continue
            low, high = limits(rule)
            covered = (least is None or (low is not None and low >= least)) and (
                greatest is None or (high is not None and high <= greatest)
            )
            assert not covered, f"{name} can never decide, as {other} refuses before it"
