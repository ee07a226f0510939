import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from srpo_core.config import load_settings
from srpo_core.gates import decide

ROOT = Path(__file__).resolve().parents[2]
SELECTION = {"admissible": [10], "reason": "it is best"}


@pytest.fixture(scope="module")
def gate(benchmark_named):
    """Return the benchmark, the pairs of the honest seeds, and the measured rules of the tiny preset."""
    module = benchmark_named("gate")
    runs = list(module.read_runs(module.HONEST))
    own = load_settings(ROOT / "profiles/tiny.yaml").gate.model_copy(update={"resamples": 2000})
    return module, runs, module.measured_rules(own, runs[0])[0]


def test_the_honest_seeds_of_the_demo_pass_and_the_plain_comparison_agrees_with_the_decision(gate):
    module, runs, own = gate
    assert len(runs) == 5
    for seed, pairs in enumerate(runs):
        assert module.broken_rules(own, pairs, seed) == []
    bad = replace(runs[0], aligned=runs[0].base)
    decision = decide(bad, SELECTION, seed=0, gate=own)
    refusing = {rule["name"] for rule in decision["rules"] if rule["verdict"] == "refuses"}
    assert (
        set(module.broken_rules(own, bad, 0))
        == refusing
        == {"style_gained", "style_wins", "objective_gained"}
    )


def test_a_model_with_base_and_aligned_exchanged_fails_by_the_rules_of_gain_and_by_no_other(gate):
    """The base is as good as the aligned model where equality is enough.

    Except in its distance to real ink drawings, and in detail and contrast, which ink raises.
    """
    module, runs, own = gate
    for seed, pairs in enumerate(runs):
        found = module.broken_rules(own, replace(pairs, base=pairs.aligned, aligned=pairs.base), seed)
        assert {"style_gained", "style_wins", "objective_gained"} <= set(found)
        assert {name for name in found if module.allows_equality(own.rules[name])} <= {
            "reality_kept",
            "detail_kept",
            "contrast_kept",
        }


def test_a_model_equal_to_the_base_is_refused_in_at_most_3_percent_of_evaluations(gate):
    """The benchmark simulates 1,000 evaluations; 60 are enough to notice a rate of 10 %."""
    module, runs, own = gate
    line = module.equal_model(runs, own, 60)
    assert line["rules"] == sum(map(module.allows_equality, own.rules.values())) > 5
    assert line["refused"] <= 0.05
    assert line["low"] <= line["refused"] <= line["high"]


def test_resampling_keeps_the_images_of_a_prompt_together_and_the_number_of_prompts_per_style(gate):
    module, runs, _ = gate
    pairs = module.resampled(runs[0], np.random.default_rng(0))
    assert sorted(pairs.styles) == sorted(runs[0].styles)
    assert len(set(pairs.prompts)) == 40
    own = {one: runs[0].by_prompt(runs[0].aligned[one]) for one in ("reward", "diversity")}
    for number, name in enumerate(pairs.prompts):
        prompt = runs[0].prompts.index(name.partition(": ")[2])
        for metric, means in own.items():
            assert pairs.by_prompt(pairs.aligned[metric])[number] == pytest.approx(means[prompt])


def test_every_defect_is_refused_at_its_full_size_and_the_curves_are_drawn(gate, monkeypatch):
    module, runs, own = gate
    monkeypatch.setattr(module, "SHARES", (0.0, 1.0))
    lines = list(module.curves(runs, own, 3))
    assert [line["curve"] for line in lines][-2:] == ["diversity lost", "gain missing"]
    for line in lines:
        assert line["points"] == [(0.0, 0.0), (1.0, 1.0)], line["curve"]
    chart = ElementTree.fromstring(module.drawn(json.loads(json.dumps(lines)), module.SHARES))
    shapes = [element.tag.rpartition("}")[2] for element in chart.iter()]
    assert shapes.count("polyline") == len(lines)


def test_a_model_on_the_margin_rarely_passes(gate):
    module, _, own = gate
    line = module.on_the_margin(0.10, module.lost_prompts, own, 100)
    assert line["passed"] <= 0.05 < line["passed_by_the_bootstrap_alone"] + 0.03
    assert line["lost"] == "whole prompts"
