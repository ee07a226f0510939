"""The error rate of an evaluation in stages: published boundaries, and the chance of an error at any stage."""

from math import sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom

from srpo_core.config import load_settings
from srpo_core.gates.shares import lower_end, upper_end
from srpo_core.gates.spending import Stage, nominal_levels, share_levels, spent, spent_at, stage_sizes

ROOT = Path(__file__).resolve().parents[2]


def boundaries(alpha, shares):
    return [-NormalDist().inv_cdf(level) for level in nominal_levels(alpha, shares)]


def test_the_boundaries_are_those_published_for_three_and_five_stages():
    """Lan and DeMets' function for O'Brien and Fleming, one-sided 2.5 % (ldbounds, gsDesign: sfLDOF)."""
    assert boundaries(0.025, [1 / 3, 2 / 3, 1]) == pytest.approx([3.7103, 2.5114, 1.9930], abs=1e-4)
    five = [4.8769, 3.3570, 2.6803, 2.2898, 2.0310]
    assert boundaries(0.025, [0.2, 0.4, 0.6, 0.8, 1]) == pytest.approx(five, abs=1e-4)


def test_a_single_stage_has_the_whole_error_rate():
    assert nominal_levels(0.025, [1.0]) == [0.025]
    stage = Stage(0, (40,))
    assert stage.is_last
    assert stage.confidence(0.95) == pytest.approx(0.95)
    assert stage.exact_confidence(0.95) == pytest.approx(0.95)
    assert stage.share_confidence(0.95, 0.05, 3) == pytest.approx(0.95)


@pytest.mark.parametrize("alpha", [0.025, 0.05 / 14, 0.1])
def test_what_the_stages_spend_sums_to_the_whole_error_rate(alpha):
    parts = spent_at(alpha, [0.5, 0.75, 1.0])
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(alpha)
    assert spent(alpha, 1.0) == pytest.approx(alpha)


def test_a_motion_that_is_tested_at_every_stage_crosses_with_the_whole_error_rate():
    shares, alpha = np.array([0.4, 0.7, 1.0]), 0.025
    steps = np.random.default_rng(0).normal(size=(400_000, 3)) * np.sqrt(np.diff(shares, prepend=0))
    scores = steps.cumsum(1) / np.sqrt(shares)
    crossed = (scores > boundaries(alpha, shares.tolist())).any(1).mean()
    assert crossed == pytest.approx(alpha, abs=4 * sqrt(alpha / len(steps)))
    assert (scores > 1.96).any(1).mean() > 1.6 * alpha, "a test at the full level errs much more often"


@pytest.mark.parametrize(
    ("margin", "sizes"), [(0.05, (60, 90, 120)), (0.08, (20, 30, 40)), (0.03, (100, 150, 200)), (0.01, (400, 600, 800))]
)  # fmt: skip
def test_a_share_on_the_margin_is_accepted_at_any_stage_with_at_most_the_whole_error_rate(margin, sizes):
    """Computed by following the chances of every number of hits through the stages."""
    levels = share_levels(0.05, margin, sizes, [size / sizes[-1] for size in sizes])
    chances, before, accepted = np.array([1.0]), 0, 0.0
    for size, level in zip(sizes, levels, strict=True):
        added = binom.pmf(np.arange(size - before + 1), size - before, margin)
        chances, before = np.convolve(chances, added), size
        passes = np.array([upper_end(hits, size, 1 - level) <= margin for hits in range(len(chances))])
        accepted += chances[passes].sum()
        chances = np.where(passes, 0.0, chances)
    assert 0 < accepted <= 0.05


def test_a_stage_at_which_not_even_a_sample_without_a_hit_proves_anything_leaves_all_to_the_next():
    # 40 prompts without a loss exclude 8 %, 30 exclude it only at a level that the third of four is not given
    assert share_levels(0.05, 0.08, (20, 30, 40), [0.5, 0.75, 1])[-1] == pytest.approx(0.05)
    assert Stage(2, (20, 30, 40)).share_confidence(0.95, 0.08, 1) == pytest.approx(0.95)
    used = share_levels(0.05, 0.05, (60, 90, 120), [0.5, 0.75, 1])
    assert used[1] > 0.95**90  # no hit among 90 is enough
    assert used[2] == pytest.approx(0.05 - 0.95**90)


def test_the_sizes_of_the_stages_are_rounded_up_and_equal_ones_count_once():
    assert stage_sizes(40, [0.5, 0.75, 1.0]) == (20, 30, 40)
    assert stage_sizes(200, [0.3, 1.0]) == (60, 200)
    assert stage_sizes(3, [0.1, 0.2, 0.5, 1.0]) == (1, 2, 3)


def test_the_lower_end_of_a_share_is_the_mirror_of_the_upper_end():
    assert lower_end(0, 40, 0.95) == 0
    for hits in (1, 7, 40):
        assert lower_end(hits, 40, 0.95) == pytest.approx(1 - upper_end(40 - hits, 40, 0.95))
        assert binom.sf(hits - 1, 40, lower_end(hits, 40, 0.95)) == pytest.approx(0.05)


def can_be_shown(settings, rule, sizes):
    """Return for each stage whether a model without a single bad image shows the rule there."""
    units = settings.evaluate.seeds_per_prompt if rule.compare == "share" else 1
    stages = [Stage(number, sizes) for number in range(len(sizes))]
    levels = [stage.share_confidence(settings.gate.confidence, rule.margin, units) for stage in stages]
    return [
        upper_end(0, stage.size * units, level) <= rule.margin
        for stage, level in zip(stages, levels, strict=True)
    ]


@pytest.mark.parametrize(
    ("profile", "sizes", "stages"),
    [
        ("flux1_dev", (100, 150, 200), {1, 2}),
        ("flux1_dev_lora", (100, 150, 200), {1, 2}),
        ("flux1_dev_lora_24gb", (75, 113, 150), {2}),
        ("flux1_dev_lora_48gb", (75, 113, 150), {2}),
        ("flux1_dev_lora_80gb", (75, 113, 150), {2}),
        ("tiny", (20, 30, 40), {2}),
    ],
)
def test_the_earliest_stage_at_which_a_flawless_model_can_pass(profile, sizes, stages):
    """Of 200 prompts the second, of 150 and of 40 only the last: every rule on shares has to be shown."""
    settings = load_settings(ROOT / f"profiles/{profile}.yaml")
    assert stage_sizes(settings.evaluate.num_prompts, [0.5, 0.75, 1.0]) == sizes
    shares = [rule for rule in settings.gate.rules.values() if rule.compare in ("share", "share_of_prompts")]
    assert len(shares) >= 3
    shown = [can_be_shown(settings, rule, sizes) for rule in shares]
    assert {number for number in range(3) if all(one[number] for one in shown)} == stages


@pytest.mark.parametrize(
    ("profile", "rule", "counts"),
    [
        ("flux1_dev", "few_broken", (3, 9, 15)),
        ("flux1_dev", "no_prompt_lost", (-1, 0, 1)),
        ("flux1_dev", "few_copies", (-1, 1, 2)),
        ("flux1_dev", "few_repeated", (-1, 0, 1)),
        ("flux1_dev_lora_80gb", "few_broken", (-1, 1, 3)),
        ("flux1_dev_lora_80gb", "no_prompt_lost", (-1, -1, 0)),
        ("flux1_dev_lora_80gb", "few_copies", (-1, -1, 0)),
        ("flux1_dev_lora_80gb", "few_repeated", (-1, -1, 0)),
    ],
)
def test_how_many_bad_images_or_prompts_each_stage_allows(profile, rule, counts):
    """The last ones are those of docs/gates.md; -1: not even none shows the rule."""
    settings = load_settings(ROOT / f"profiles/{profile}.yaml")
    evaluate, limit = settings.evaluate, settings.gate.rules[rule]
    sizes = stage_sizes(evaluate.num_prompts, evaluate.stages)
    units = evaluate.seeds_per_prompt if limit.compare == "share" else 1
    found = []
    for number, size in enumerate(sizes):
        level = Stage(number, sizes).share_confidence(settings.gate.confidence, limit.margin, units)
        ends = [upper_end(count, size * units, level) for count in range(20)]
        found.append(sum(end <= limit.margin for end in ends) - 1)
    assert tuple(found) == counts
