"""A few simulated runs on the rows of real images; benchmarks/alarm.py runs a thousand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from srpo_core.config import load_settings
from srpo_core.models import load_base
from srpo_core.models.embeddings import read_embeddings
from srpo_core.scorers.metrics import MetricContext

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def alarm(benchmark_named):
    return benchmark_named("alarm")


@pytest.fixture(scope="module")
def drawn(alarm):
    rule = load_settings(ROOT / "profiles/tiny.yaml").train.early_stop
    return rule, alarm.prepare(alarm.read_bank(alarm.ROWS), rule, np.random.default_rng(0))


def stopped(alarm, drawn, name, runs=6):
    rule, run = drawn
    (kind,) = (kind for kind in alarm.KINDS if kind.name == name)
    random = np.random.default_rng(1)
    return [alarm.simulate(run, kind, rule, random)[0] for _ in range(runs)]


@pytest.mark.parametrize("name", ["base against base", "honest model", "at every limit"])
def test_runs_within_the_limits_of_the_tiny_preset_are_not_stopped(alarm, drawn, name):
    assert stopped(alarm, drawn, name) == [None] * 6


@pytest.mark.parametrize(
    "name", ["25 % noise", "20 % other subjects", "blur", "one seed copied", "seeds collapse"]
)
def test_faults_are_found_after_they_begin(alarm, drawn, name):
    found = stopped(alarm, drawn, name)
    assert all(number is not None and number >= alarm.BEGINS for number in found)


def test_the_former_rule_counts_falls_in_a_row(alarm):
    assert alarm.old_rule([1.0, 0.9, 0.8, 0.8]) == 3
    assert alarm.old_rule([1.0, 0.8, 0.9, 0.8]) is None


def test_the_rows_of_a_few_images_have_the_layout_of_the_shipped_ones(
    benchmark_named, alarm, tiny_project, monkeypatch
):
    rows, settings = benchmark_named("alarm_rows"), load_settings(ROOT / "profiles/tiny.yaml")
    monkeypatch.chdir(tiny_project)
    monkeypatch.setattr(rows, "SEEDS", 4)
    texts, _, condition = read_embeddings("validation")
    prompts = texts[2:4]
    context = MetricContext(
        settings.rewards, settings.select_judge, settings.control_words, device=torch.device("cpu")
    )
    base = load_base(settings.model)
    found = {
        collapsed: rows.rows_of(
            list(rows.generate(base, settings, prompts, condition[2:4], collapsed=collapsed)),
            prompts,
            context,
        )
        for collapsed in (True, False)
    }
    with np.load(alarm.ROWS) as shipped:
        for name, values in found[True].items():
            # 2 prompts with 4 seeds here, 40 with 16 there
            small = tuple({40: 2, 16: 4}.get(size, size) for size in shipped[f"collapse.{name}"].shape)
            assert (values.shape, values.dtype) == (small, shipped[f"collapse.{name}"].dtype), name
    assert found[True]["distances"].mean() < 0.5 * found[False]["distances"].mean()
