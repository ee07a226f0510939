"""A few simulated runs on the rows of real images; benchmarks/alarm.py runs a thousand."""

from pathlib import Path

import numpy as np
import pytest

from srpo_core.config import load_settings

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
