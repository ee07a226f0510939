from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/overtrain.py"


@pytest.fixture(scope="module")
def overtrain(benchmark_named):
    return benchmark_named("overtrain")


def figure(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


def test_harm_is_an_independent_figure_that_is_significantly_worse(overtrain):
    assert overtrain.harm_of({"judge_top5": figure(-0.3, -0.1), "kid": figure(-0.2, 0.1)}) == ["judge_top5"]
    assert overtrain.harm_of({"judge_top5": figure(-0.3, 0.1), "kid": figure(0.05, 0.1)}) == ["kid"]
    assert overtrain.harm_of({"judge_wanted": figure(0.1, 0.3), "kid": figure(-0.4, -0.1)}) == []
    assert overtrain.harm_of({"relative_reward": figure(-0.3, -0.1)}) == [], "the objective is no witness"


def row(method, seed, step, *, harm=(), passed=True, rate=1.0, alarm=None):
    names = {"method": method, "seed": seed, "rate": rate, "step": step}
    return names | {"harm": list(harm), "passed": passed, "alarm": alarm}


def test_the_summary_has_the_first_harmful_step_and_harmful_checkpoints_that_passed(overtrain):
    rows = [
        row("srpo", 0, 10),
        row("srpo", 0, 20, harm=["kid"], passed=False),
        row("srpo", 0, 30, harm=["kid"], passed=True),
        row("srpo", 1, 10, harm=["kid"], passed=False),
        row("refl", 0, 10),
        row("refl", 0, 10, rate=5.0, harm=["judge_top5"], passed=False, alarm=10),
    ]
    srpo, refl, pushed = overtrain.summaries(rows)
    assert srpo["harm_begins"] == {0: 20, 1: 10}
    assert (srpo["checkpoints"], srpo["passed"], srpo["harmful"]) == (4, 2, 3)
    assert srpo["harmful_but_passed"] == [(0, 30)]
    assert refl["harm_begins"] == "never"
    assert (refl["alarm"], pushed["alarm"]) == ("never", {0: 10})
    assert (pushed["rate"], pushed["harmful_but_passed"]) == (5.0, [])
