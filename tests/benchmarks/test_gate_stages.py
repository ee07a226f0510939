import numpy as np
import pytest

from srpo_core.config import load_settings
from srpo_core.gates.rules import measure_rules


@pytest.fixture(scope="module")
def stages(benchmark_named):
    """Return the benchmark, the honest seeds, and the measured rules of the tiny preset."""
    module = benchmark_named("gate_stages")
    runs = list(module.read_runs(module.HONEST))
    gate, _ = module.measured_rules(load_settings(module.ROOT / "profiles/tiny.yaml").gate, runs[0])
    return module, runs, gate.model_copy(update={"resamples": 4000})


@pytest.mark.parametrize("name", ["style_gained", "subject_kept", "diversity_kept", "detail_kept"])
def test_a_run_moved_to_the_margin_of_a_rule_has_exactly_that_figure(stages, name):
    module, runs, gate = stages
    rule = gate.rules[name]
    own = gate.model_copy(update={"rules": {name: rule}})
    for run in runs:
        found = measure_rules(own.rules, module.at_margin(run, rule), seed=0, gate=own)[name]
        assert found.value == pytest.approx(rule.margin)


def test_a_large_evaluation_of_a_good_model_passes_early_and_one_of_a_copy_of_the_base_does_not(stages):
    module, runs, gate = stages
    good = module.drawn(runs[0], 200, np.random.default_rng(0))
    assert len(good.prompts) == 200
    passed, stage = module.decided(good, gate, (100, 150, 200), 0)
    assert passed
    assert stage < 2
    copied = module.replace(good, aligned=good.base)
    assert module.decided(copied, gate, (100, 200), 0) == (False, 1)


def test_most_images_broken_end_the_evaluation_at_its_first_stage(stages):
    module, runs, gate = stages
    pairs = module.drawn(runs[0], 40, np.random.default_rng(0))
    broken = np.ones(len(pairs.seeds))
    spoilt = module.replace(pairs, aligned={**pairs.aligned, "broken": broken})
    assert module.decided(spoilt, gate, (20, 30, 40), 0) == (False, 0)
