"""Every rule of every preset, one at a time: what it passes, what it refuses, and how much evidence it needs.

Only the figures of the other model (base or champion) are changed. This separates a rule against the base from a
rule against the champion on the same metric.
"""

from pathlib import Path

import numpy as np
import pytest

from srpo_core.config import load_settings
from srpo_core.gates import decide
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.rules import limits, measure_rules
from srpo_core.scorers.metrics import metric_names

ROOT = Path(__file__).resolve().parents[2]
SELECTION = {"step": 10, "admissible": [10], "reason": "it is best"}
STYLES = ("anime", "photo")
PROMPTS, SEEDS = 40, 20
RESAMPLES = 4000
STEP = 2 / SEEDS  # change of the win rate if two more images per prompt win
SLIGHT = 1e-4
UNEVEN = (
    1e-6  # differences between prompts, without which an interval is as wide as the figures' range allows
)
WIDE = 0.5  # spread between prompts that makes the interval extend far beyond both sides of any margin

# A clearly good model: figures of the base and of the aligned model. The champion is slightly worse than the aligned
# model. Metrics that are not listed are equal for all three.
GOOD = {
    "relative_reward": (0.40, 0.60),
    "judge_wanted": (0.40, 0.80),
    "judge_score": (1.10, 1.20),
    "judge_sgp": (0.40, 0.60),
    **dict.fromkeys(
        ("broken", "copied", "repeated", "common_edge", "uneven_phases", "spectral_peak"), (0.0, 0.0)
    ),
}
SAME = 0.5
BEHIND = 0.001
# Written by hand: the severity of each rule, and clearly bad figures (a difference, a ratio or a win rate).
TINY = {
    "style_gained": ("refuse", 0.0),
    "style_wins": ("refuse", 0.4),
    "objective_gained": ("refuse", 0.0),
    "subject_kept": ("refuse", -0.3),
    "reward_kept": ("refuse", -0.3),
    "diversity_kept": ("refuse", 0.15),
    "subject_not_traded": ("hacking", -0.3),
    "reality_kept": ("veto", 1.5),
    "saturation_band": ("veto", -0.4, 0.4),
    "red_green_band": ("veto", -0.2, 0.2),
    "yellow_blue_band": ("veto", -0.2, 0.2),
    "highlights_band": ("refuse", -0.4, 0.4),
    "fine_detail_band": ("veto", -0.15, 0.15),
    "grid_band": ("veto", -0.05, 0.05),
    "few_broken": ("refuse", 0.08),
    "no_prompt_lost": ("refuse", 0.1),
    "few_copies": ("refuse", 0.05),
    "no_common_mark": ("refuse", 0.05),
    "no_common_edge": ("refuse", 0.9),
    "phases_even": ("refuse", 0.3),
    "no_single_frequency": ("refuse", 2.0),
    "detail_kept": ("refuse", 0.2),
    "detail_not_added": ("refuse", 6.0),
    "contrast_kept": ("refuse", 0.5),
    "contrast_not_added": ("refuse", 2.0),
    "channels_agree": ("refuse", -0.2),
    "champion_style": ("refuse", -0.3),
    "champion_subject": ("refuse", -0.3),
    "champion_reward": ("refuse", -0.3),
    "champion_diversity": ("refuse", 0.15),
}
FULL_SIZE = {
    "objective_gained": ("refuse", 0.0),
    "judge_wins": ("refuse", 0.4),
    "alignment_kept": ("refuse", 0.8),
    "reward_kept": ("refuse", -0.02),
    "diversity_kept": ("refuse", 0.6),
    "judge_not_traded": ("hacking", -0.05),
    "reality_kept": ("warn", 0.3),
    "saturation_band": ("veto", -0.2, 0.2),
    "red_green_band": ("veto", -0.1, 0.1),
    "yellow_blue_band": ("veto", -0.1, 0.1),
    "highlights_band": ("veto", -0.15, 0.15),
    "fine_detail_kept": ("veto", 0.3),
    "fine_detail_not_invented": ("veto", 3.0),
    "grid_band": ("veto", 0.3, 2.0),
    "few_broken": ("refuse", 0.08),
    "no_prompt_lost": ("refuse", 0.1),
    "few_copies": ("refuse", 0.05),
    "few_repeated": ("refuse", 0.1),
    "no_common_mark": ("refuse", 0.05),
    "no_common_edge": ("refuse", 0.9),
    "phases_even": ("refuse", 0.3),
    "no_single_frequency": ("refuse", 2.0),
    "detail_kept": ("refuse", 0.2),
    "detail_not_added": ("refuse", 6.0),
    "contrast_kept": ("refuse", 0.5),
    "contrast_not_added": ("refuse", 2.0),
    "channels_agree": ("refuse", -0.2),
    "champion_judge": ("refuse", -0.03),
    "champion_alignment": ("refuse", 0.8),
    "champion_objective": ("refuse", -0.05),
    "champion_reward": ("refuse", -0.02),
    "champion_diversity": ("refuse", 0.7),
}
ALL = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
PRESETS = {profile: TINY if profile == "tiny" else FULL_SIZE for profile in ALL}
TRIED = ["tiny", "flux1_dev"]
SETTINGS = {profile: load_settings(ROOT / f"profiles/{profile}.yaml") for profile in PRESETS}
DIRECT = [
    (profile, name)
    for profile in TRIED
    for name, rule in SETTINGS[profile].gate.rules.items()
    if COMPARISONS[rule.compare].direct
]
EVERY_RULE = [
    (profile, name) for profile in TRIED for name in PRESETS[profile] if (profile, name) not in DIRECT
]
SIGNS = {"veto", "hacking"}
REFUSES = ("refuses", False)
BREAKS = {"refuse": REFUSES, "veto": REFUSES, "hacking": REFUSES, "warn": ("warns", True)}


def good(profile):
    """Return the pairs of the good model; each metric has shape (PROMPTS * SEEDS,)."""
    evaluate, count = SETTINGS[profile].evaluate, PROMPTS * SEEDS
    figures = {
        name: GOOD.get(name, (SAME, SAME)) for name in metric_names(evaluate.metrics, list(evaluate.scorers))
    }
    uneven = UNEVEN * np.repeat(sign_of_prompts(), SEEDS)
    return Pairs(
        prompts=tuple(str(number) for number in range(PROMPTS)),
        styles=tuple(STYLES[number * len(STYLES) // PROMPTS] for number in range(PROMPTS)),
        prompt_index=np.repeat(np.arange(PROMPTS), SEEDS),
        seeds=np.tile(np.arange(SEEDS), PROMPTS),
        base={name: base + uneven for name, (base, _) in figures.items()},
        aligned={name: np.full(count, ours) for name, (_, ours) in figures.items()},
        champion={name: ours - BEHIND + uneven for name, (_, ours) in figures.items()},
    )


def sign_of_prompts():
    """Return 1 and -1 in turn, (PROMPTS,)."""
    return np.where(np.arange(PROMPTS) % 2, 1.0, -1.0)


def moved(pairs, rule, figure, *, spread=0.0):
    """Return pairs for which the rule's comparison gives `figure`, with plus or minus `spread` by prompt."""
    ours = pairs.aligned[rule.metric].reshape(PROMPTS, SEEDS)
    sign = sign_of_prompts()[:, None]
    seed = np.arange(SEEDS)
    if rule.compare == "win_rate":
        # wins are large and losses small, so the mean rises at any win rate
        wins = np.round(SEEDS * figure + sign * SEEDS * 2 * spread * (1 - figure))
        theirs = ours - np.where(seed < wins, 0.4, -0.01 - rule.tie)
    elif rule.compare == "factor":
        theirs = ours - np.log(figure) + sign * spread + 0 * seed
    elif rule.compare == "ratio":
        theirs = ours.mean() / figure * (1 + sign * spread) + 0 * seed
    else:
        # three of four images win slightly and the fourth loses their sum, so the win rate is high even at a small mean loss
        theirs = ours - figure - np.where(seed % 4, 0.02, -0.06) + sign * spread
    theirs = theirs + UNEVEN * sign
    other = dict(getattr(pairs, rule.against)) | {rule.metric: theirs.ravel()}
    return Pairs(**{**vars(pairs), rule.against: other})


def gate_of(profile, *names):
    """Return the preset's gate with only the named rules, or with all that compare resampled means."""
    gate = SETTINGS[profile].gate
    resampled = [name for name in gate.rules if (profile, name) not in DIRECT]
    kept = {name: rule for name, rule in gate.rules.items() if name in (names or resampled)}
    return gate.model_copy(update={"resamples": RESAMPLES, "rules": kept})


def verdict(profile, name, pairs):
    """Return the verdict of the gate with only this rule, and whether the model passes."""
    decision = decide(pairs, SELECTION, seed=0, gate=gate_of(profile, name))
    [rule] = decision["rules"]
    return rule["verdict"], decision["passed"]


def broken(profile, pairs):
    """Return the rules that are broken, by plain comparison of intervals: a decision by all rules takes seconds."""
    gate, found = gate_of(profile), set()
    for name, one in measure_rules(gate.rules, pairs, seed=0, gate=gate).items():
        least, greatest = limits(gate.rules[name])
        near, far = (one.high, one.low) if gate.rules[name].severity in SIGNS else (one.low, one.high)
        if (least is not None and near < least) or (greatest is not None and far > greatest):
            found.add(name)
    return found


def just_around(rule):
    """Yield two figures at each limit of the rule: one just inside and one just outside."""
    least, greatest = limits(rule)
    step = STEP if rule.compare == "win_rate" else SLIGHT
    if least is not None:
        yield least + step, least - step
    if greatest is not None:
        yield greatest - step, greatest + step


@pytest.mark.parametrize("profile", PRESETS)
def test_every_preset_has_exactly_these_rules_with_these_severities(profile):
    found = {name: rule.severity for name, rule in SETTINGS[profile].gate.rules.items()}
    assert found == {name: severity for name, (severity, *_) in PRESETS[profile].items()}


def test_all_full_size_presets_have_the_same_gate():
    # so the tests below run each rule once
    for profile in PRESETS.keys() - {"tiny"}:
        assert SETTINGS[profile].gate == SETTINGS["flux1_dev"].gate, profile


@pytest.mark.parametrize("profile", TRIED)
def test_a_clearly_good_model_that_is_better_than_the_champion_passes_every_rule(profile):
    decision = decide(good(profile), SELECTION, seed=0, gate=gate_of(profile))
    assert decision["passed"]
    assert {rule["verdict"] for rule in decision["rules"]} == {"holds"}
    assert broken(profile, good(profile)) == set()


@pytest.mark.parametrize(("profile", "name"), EVERY_RULE)
def test_a_rule_holds_just_inside_its_margin_and_only_it_breaks_just_outside(profile, name):
    rule = SETTINGS[profile].gate.rules[name]
    for inside, beyond in just_around(rule):
        pairs = moved(good(profile), rule, inside)
        assert verdict(profile, name, pairs) == ("holds", True), f"at {inside}"
        assert broken(profile, pairs) == set(), f"at {inside}"
        pairs = moved(good(profile), rule, beyond)
        assert verdict(profile, name, pairs) == BREAKS[rule.severity], f"at {beyond}"
        assert broken(profile, pairs) == {name}, f"at {beyond}"


@pytest.mark.parametrize(("profile", "name"), EVERY_RULE)
def test_every_rule_breaks_at_clearly_bad_figures(profile, name):
    _, *bad = PRESETS[profile][name]
    for figure in bad:
        pairs = moved(good(profile), SETTINGS[profile].gate.rules[name], figure)
        assert name in broken(profile, pairs), f"at {figure}"


@pytest.mark.parametrize(("profile", "name"), EVERY_RULE)
def test_if_prompts_differ_widely_refuse_rules_break_but_veto_and_hacking_rules_hold(profile, name):
    rule = SETTINGS[profile].gate.rules[name]
    for inside, beyond in just_around(rule):
        figure = beyond if rule.severity in SIGNS else inside
        pairs = moved(good(profile), rule, figure, spread=WIDE)
        expected = ("holds", True) if rule.severity in SIGNS else BREAKS[rule.severity]
        assert verdict(profile, name, pairs) == expected, f"at {figure}"


@pytest.mark.parametrize(("profile", "name"), DIRECT)
def test_a_rule_without_resampling_holds_up_to_its_margin_with_as_many_images_as_the_preset_has(
    profile, name
):
    settings = SETTINGS[profile]
    rule, prompts, seeds = (
        settings.gate.rules[name],
        settings.evaluate.num_prompts,
        settings.evaluate.seeds_per_prompt,
    )
    index = np.repeat(np.arange(prompts), seeds)
    direct = COMPARISONS[rule.compare].direct
    if rule.compare == "whole":
        assert direct(np.full(len(index), rule.margin), index, 0.95)[2] <= rule.margin
        assert PRESETS[profile][name][1] > rule.margin
        return
    # the number of broken images, or prompts, that the rule allows: by hand
    allowed = {
        "tiny": {"few_broken": 1, "no_prompt_lost": 0, "few_copies": 0},
        "flux1_dev": {"few_broken": 15, "no_prompt_lost": 1, "few_copies": 3, "few_repeated": 1},
    }[profile][name]
    for count, holds in ((allowed, True), (allowed + 1, False)):
        figures = (np.arange(len(index)) < count).astype(float)
        if rule.compare == "share_of_prompts":
            figures = (index < count).astype(float)
        assert (direct(figures, index, 0.95)[2] <= rule.margin) is holds, count


def test_one_lost_prompt_or_four_percent_of_broken_images_is_refused_at_tiny_and_two_and_three_at_full_size():
    for profile, images, prompts in (("tiny", 0.04, 1 / 40), ("flux1_dev", 0.03, 0.02)):
        gate, evaluate = SETTINGS[profile].gate, SETTINGS[profile].evaluate
        index = np.repeat(np.arange(evaluate.num_prompts), evaluate.seeds_per_prompt)
        scattered = np.zeros(len(index))
        scattered[:: round(1 / images)] = 1
        lost = (index < round(prompts * evaluate.num_prompts)).astype(float)
        for name, figures in (("few_broken", scattered), ("no_prompt_lost", lost)):
            rule = gate.rules[name]
            assert COMPARISONS[rule.compare].direct(figures, index, 0.95)[2] > rule.margin, (profile, name)
