import json
import sys
from pathlib import Path

import pytest

from srpo_core.config import GateRule
from srpo_core.errors import ArtifactError
from srpo_core.gates.expectations import rules_that_hold
from srpo_core.gates.rules import Measurement

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/seeds.py"


@pytest.fixture(scope="module")
def seeds(benchmark_named):
    return benchmark_named("seeds")


def rule(low, high, **changes):
    given = {
        "name": "kept",
        "metric": "quality",
        "against": "base",
        "compare": "difference",
        "side": "at_least",
    }
    given |= {"margin": 0.0, "severity": "refuse", "passed": low is not None and low > 0, "reason": "because"}
    value = None if low is None else (low + high) / 2
    return given | {"low": low, "high": high, "value": value} | changes


def decisions(*ends, **changes):
    rules = [rule(low, high, **changes) for low, high in ends]
    return {f"run {n}": {"passed": one["passed"], "rules": [one]} for n, one in enumerate(rules)}


FIVE = [(0.30, 0.50), (0.10, 0.30), (-0.2, 0.0), (0.2, 0.4), (0.4, 0.6)]


def test_a_rule_has_its_spread_over_runs_and_the_margin_that_four_of_five_pass(seeds):
    line, together = seeds.compare(decisions(*FIVE), 0.8)
    assert line["mean"] == pytest.approx(0.26)
    assert line["deviation"] == pytest.approx(0.2302, abs=1e-4)
    assert line["half_width"] == pytest.approx(0.1)
    assert line["refused_now"] == ["run 2"]
    assert (line["margin_for_most"], line["margin_for_all"]) == (0.1, -0.2)
    assert (together["passed_now"], together["would_pass_at_margin_for_most"]) == (4, 4)
    assert together["then_refused_by"] == {"run 2": ["kept"]}


def test_fewer_than_four_runs_pass_if_rules_refuse_different_runs(seeds):
    runs = decisions(*FIVE)
    for (low, high), one in zip(reversed(FIVE), runs.values(), strict=True):
        one["rules"].append(
            rule(low, high, name="subject") if one is not runs["run 2"] else rule(0.9, 1.0, name="subject")
        )
    runs["run 0"]["rules"][1] |= {"low": -0.9, "high": -0.8}
    *_, together = seeds.compare(runs, 0.8)
    assert together["would_pass_at_margin_for_most"] == 3
    assert together["then_refused_by"] == {"run 0": ["subject"], "run 2": ["kept"]}


@pytest.mark.parametrize("side", ["at_least", "at_most", "within"])
@pytest.mark.parametrize("severity", ["refuse", "veto"])
@pytest.mark.parametrize("compare", ["difference", "ratio"])
@pytest.mark.parametrize(("low", "high"), [(0.93, 1.08), (-0.31, -0.12), (1.2, 1.3)])
def test_a_run_passes_at_the_printed_margin_and_fails_at_a_slightly_stricter_one(
    seeds, side, severity, compare, low, high
):
    given = rule(low, high, side=side, severity=severity, compare=compare)
    needed = seeds.needed_margin(given)

    def holds(margin):
        own = {key: given[key] for key in ("metric", "against", "compare", "side", "severity")}
        asked = GateRule(**own, margin=margin, meaning="it is kept")
        ends = Measurement(given["value"], low, high, 0.95, None)
        return rules_that_hold({"kept": asked}, {"kept": ends}, armed=True)["kept"]

    looser = 1e-6 if side != "at_least" else -1e-6
    assert holds(needed + looser)
    if needed:  # a band of width 0 cannot be narrower
        assert not holds(needed - looser)


def test_a_run_without_an_interval_counts_as_refused(seeds):
    line, together = seeds.compare(decisions(*FIVE[:4], (None, None)), 0.8)
    assert line["measured"] == 4
    assert (line["margin_for_most"], line["margin_for_all"]) == (-0.2, None)
    assert together["then_refused_by"] == {"run 4": ["kept"]}


def test_decisions_are_found_in_run_directories_and_different_rules_are_refused(
    seeds, tmp_path, monkeypatch, capsys
):
    places = ["a/decision.json", "b/runs/gate/decision.json", "c/workspace/runs/gate/decision.json"]
    for place, one in zip(places, decisions(*FIVE[:3]).values(), strict=True):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(json.dumps(one))
    monkeypatch.setattr(sys, "argv", ["seeds.py", *(str(tmp_path / name) for name in ("a", "b", "c"))])
    seeds.main()
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["measured"], last["runs"]) == (3, 3)
    with pytest.raises(ArtifactError, match=r"nowhere is no decision\.json"):
        seeds.read_decision(Path("nowhere"))
    other = {"run 0": {"passed": True, "rules": []}, "run 1": {"passed": True, "rules": [rule(0.1, 0.2)]}}
    with pytest.raises(ArtifactError, match="have different rules"):
        list(seeds.compare(other, 0.8))
