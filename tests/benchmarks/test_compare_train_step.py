"""The table of the comparison: ratios to the literal step, and targets."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def compare(benchmark_named):
    return benchmark_named("compare_train_step")


SECONDS = {"literal": 2.0, "exact": 1.0, "shared": 1.2, "offline": 0.3}


@pytest.mark.parametrize(
    ("spec", "method", "ratio", "met"),
    [
        ("S", "exact", 0.5, True),
        ("M", "exact", 0.5, True),
        ("M", "shared", 0.6, False),
        ("M", "offline", 0.15, True),
    ],
)
def test_a_row_has_a_ratio_a_target_and_whether_the_target_is_met(compare, spec, method, ratio, met):
    row = compare.compared(spec, method, SECONDS)
    assert (row["ratio"], row["met"]) == (ratio, met)
    assert row["target"] == compare.TARGETS[spec, method]["target"]


def test_a_method_without_target_is_only_compared(compare):
    assert "met" not in compare.compared("S", "offline", SECONDS)


def test_the_literal_step_runs_first_in_every_round_and_rounds_are_averaged(compare, monkeypatch, capsys):
    asked, seconds = [], iter([2.0, 1.0, 4.0, 0.5])

    def measure(spec, method, *, steps):
        asked.append((spec, method, steps))
        return {"cpu_seconds": next(seconds), "phases": {}}

    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(
        sys, "argv", ["compare", "--spec", "specs/S", "--methods", "exact", "--steps", "3", "--rounds", "2"]
    )
    compare.main()
    assert asked == [(Path("specs/S"), method, 3) for _ in range(2) for method in ("literal", "exact")]
    literal, exact = map(json.loads, capsys.readouterr().out.splitlines())
    assert (literal["cpu_seconds"], exact["cpu_seconds"], exact["ratio"]) == (3.0, 0.75, 0.25)
