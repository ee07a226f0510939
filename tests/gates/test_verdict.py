"""The decision from rows alone: which tables are complete, and whether a recorded decision follows from them."""

import copy
from pathlib import Path

import numpy as np
import pytest

from srpo_core.config import EvaluateSettings
from srpo_core.errors import ArtifactError, GateError
from srpo_core.gates import verdict
from srpo_core.gates.completeness import expected_rows
from srpo_core.gates.verdict import require_same

PROMPTS = [f"prompt {number}" for number in range(12)]  # those of `make.table`
SELECTION = {"step": 20, "admissible": [10, 20], "reason": "step 20 is best"}
SOURCE = Path("runs/evaluate/figures.parquet")


def expected(prompts=PROMPTS, seeds=2, metrics=("quality",), champion=None, scorers=()):
    evaluate = EvaluateSettings(
        num_prompts=len(prompts),
        seeds_per_prompt=seeds,
        metrics=list(metrics),
        scorers={},
        real_images=0,
        stages=[1.0],
    )
    found = expected_rows(prompts, ["x"] * len(prompts), 0, evaluate, champion)
    return found if not scorers else type(found)(**{**vars(found), "metrics": (*found.metrics, *scorers)})


def decide(table, make, wanted, **rules):
    gate = make.gate(**(rules or {"better": make.rule()}))
    return verdict(table, SELECTION, wanted, seed=0, gate=gate)


def only(table, column, value):
    """Return the table without the rows whose column has the value."""
    return table.filter([one != value for one in table[column].to_pylist()])


def test_a_complete_table_is_decided_by_its_figures(make):
    better = np.random.default_rng(0).normal(0.5, 0.02, (12, 2))
    assert decide(make.table(quality=(0.25, better)), make, expected())["passed"] is True
    assert decide(make.table(quality=(better, 0.25)), make, expected())["passed"] is False


@pytest.mark.parametrize(
    ("wanted", "dropped", "fault"),
    [
        (expected(prompts=PROMPTS[:-1]), None, "also has 2 images of each model, for instance prompt 'prompt 11'"),
        (expected(), ("prompt", "prompt 3"), "lacks 2 images of each model, for instance prompt 'prompt 3' seed 0"),
        (expected(), ("seed", 1), "must have 12 prompts with 2 seeds each, but lacks 12 images of each model"),
        (expected(seeds=1), None, "also has 12 images of each model, for instance prompt 'prompt 0' seed 1"),
        (expected(champion="tiny@1"), None, "has no rows of the champion, but champion in params.yaml names one"),
        (expected(metrics=("quality", "colour")), None, "lacks 1 metrics of evaluate, the first is colour"),
        (expected(prompts=["prompt 00", *PROMPTS[1:]]), None, "lacks 2 images of each model, for instance prompt 'prompt 00'"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_have_the_rows_of_the_settings_is_an_error(make, wanted, dropped, fault):
    """Rows that are missing of every model leave pairs, so only the settings can tell that they are missing."""
    table = make.table(quality=(0.25, 0.5))
    with pytest.raises(ArtifactError) as caught:
        decide(table if dropped is None else only(table, *dropped), make, wanted)
    assert fault in str(caught.value)
    assert str(caught.value).endswith("run 'dvc repro --force -s evaluate' to write it again")


def test_a_prompt_that_is_also_there_in_another_spelling_is_not_asked_for(make):
    rows = make.table(quality=(0.25, 0.5)).to_pylist()
    spelled = [row | {"prompt": "PROMPT 3"} for row in rows if row["prompt"] == "prompt 3"]
    with pytest.raises(
        ArtifactError, match="also has 2 images of each model, for instance prompt 'prompt 3'"
    ):
        decide(make.table(quality=(0.25, 0.5)).from_pylist(rows + spelled), make, expected())


def test_a_champion_that_the_settings_do_not_name_is_an_error(make):
    table = make.table(quality=(0.25, 0.5, 0.4))
    with pytest.raises(
        ArtifactError, match=r"has rows of the champion, but champion in params\.yaml names none"
    ):
        decide(table, make, expected())
    assert decide(table, make, expected(champion="tiny@1"))["num_pairs"] == 24


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None])
@pytest.mark.parametrize("model", ["base", "aligned"])
def test_a_figure_that_is_not_finite_refuses_the_model_although_no_rule_reads_it(make, bad, model):
    rows = make.table(quality=(0.25, 0.5), colour=(0.5, 0.5)).to_pylist()
    place = {"model": model, "prompt": "prompt 3", "seed": 1, "metric": "colour"}
    [row] = [row for row in rows if place.items() <= row.items()]
    row["value"] = bad
    result = decide(make.table(quality=(0.25, 0.5)).from_pylist(rows), make, expected())
    assert result["passed"] is False
    assert result["reason"] == (
        f"colour is not a finite number in 1 images (first: model {model}, prompt 'prompt 3', seed 1)."
    )


def decided(make):
    figures = np.random.default_rng(3).normal(0.4, 0.1, (12, 2))
    return decide(make.table(quality=(0.25, figures)), make, expected())


def test_a_recorded_decision_that_follows_from_the_figures_is_accepted_to_the_last_bits(make):
    recorded = decided(make)
    recorded["rules"][0]["low"] *= 1 + 1e-12
    require_same(recorded, decided(make), "decision.json")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("passed",), False, "passed is False, but the figures give True"),
        (("rules", 0, "passed"), False, "rules.better.passed is False"),
        (("rules", 0, "margin"), 0.01, "rules.better.margin is 0.01, but the figures give 0.05"),
        (("rules", 0, "low"), 0.9, "rules.better.low is 0.9"),
        (("rules", 0, "value"), None, "rules.better.value is None"),
        (("rules",), [], "rules is []"),
        (("num_pairs",), 25, "num_pairs is 25, but the figures give 24"),
        (("extra",), 1, "extra is 1, but the figures give None"),
    ],
)
def test_an_edited_decision_is_an_error_that_names_the_first_difference(make, path, value, named):
    recorded = copy.deepcopy(decided(make))
    place = recorded
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(GateError) as caught:
        require_same(recorded, decided(make), "runs/gate/decision.json")
    assert named in str(caught.value)
    assert "run 'dvc repro --force -s gate'" in str(caught.value)
