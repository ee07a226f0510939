"""When an evaluation may end early: every rule is shown to hold, or one is shown to be broken."""

from pathlib import Path

import numpy as np
import pytest

from srpo_core.config import EvaluateSettings
from srpo_core.errors import ArtifactError
from srpo_core.gates import verdict
from srpo_core.gates.completeness import expected_rows
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.spending import Stage
from srpo_core.gates.staged import outcome
from srpo_core.prompts import balanced_order

SELECTION = {"admissible": [10], "reason": "it is best"}
HALF = Stage(0, (12, 24))  # the tables of `make` have 12 prompts
SOURCE = Path("figures.parquet")
STYLES = ["animals" if prompt % 2 else "food" for prompt in range(12)]


def noise(mean, spread=0.02, seed=0):
    return np.random.default_rng(seed).normal(mean, spread, (12, 2))


def found(make, table, *, selection=SELECTION, stage=HALF, objective="quality", **rules):
    gate = make.gate(objective, **rules).model_copy(update={"resamples": 10_000})
    return outcome(pair_up(table, SOURCE), selection, seed=0, gate=gate, stage=stage)


def test_a_clear_gain_passes_and_a_clear_loss_is_refused_at_the_first_stage(make):
    gained, lost = make.table(quality=(0.25, noise(0.5))), make.table(quality=(0.5, noise(0.25)))
    assert found(make, gained, better=make.rule()) == "passes"
    assert found(make, lost, better=make.rule()) == "refused"


def test_a_gain_that_is_only_shown_at_the_confidence_of_all_prompts_decides_nothing_yet(make):
    table = make.table(quality=(0.25, noise(0.33, 0.04)))
    assert found(make, table, stage=Stage(0, (12,)), better=make.rule()) == "passes"
    assert found(make, table, better=make.rule()) == "undecided"


def test_a_veto_must_be_shown_to_hold_before_a_model_passes_early(make):
    """At the last stage it is enough that a veto is not shown to be broken; with few prompts that shows little."""
    within = make.rule(metric="colour", side="within", margin=0.05, severity="veto")
    near = make.table(quality=(0.25, noise(0.5)), colour=(0.5, noise(0.54, 0.05)))
    far = make.table(quality=(0.25, noise(0.5)), colour=(0.5, noise(0.7)))
    inside = make.table(quality=(0.25, noise(0.5)), colour=(0.5, noise(0.5, 0.01)))
    rules = {"better": make.rule(), "colours": within}
    assert found(make, near, **rules) == "undecided"
    assert found(make, far, **rules) == "refused"
    assert found(make, inside, **rules) == "passes"


def test_a_trade_off_refuses_early_only_while_the_objective_is_shown_to_rise(make):
    traded = make.rule(metric="colour", side="at_least", margin=-0.05, severity="hacking")
    table = make.table(quality=(0.25, noise(0.5)), colour=(0.5, noise(0.3)))
    still = make.table(quality=(0.25, noise(0.25)), colour=(0.5, noise(0.3)))
    assert found(make, table, traded=traded) == "refused"
    assert found(make, still, traded=traded) == "undecided"


def test_a_rule_that_only_warns_decides_nothing(make):
    warning = make.rule(margin=0.9, severity="warn")
    table = make.table(quality=(0.25, noise(0.5)))
    assert found(make, table, better=make.rule(), warned=warning) == "passes"


def test_a_share_refuses_early_by_its_exact_lower_end_and_a_figure_of_all_images_never(make):
    broken = make.rule(metric="broken", against="absolute", compare="share", side="at_most", margin=0.05)
    edge = make.rule(metric="edge", against="absolute", compare="whole", side="at_most", margin=0.8)
    few = np.zeros((12, 2))
    few[:2, 0] = 1  # 2 of 24: more than 5 %, but not shown
    many = np.zeros((12, 2))
    many[:, 0] = 1
    assert found(make, make.table(quality=(0, 1), broken=(0, few)), few=broken) == "undecided"
    assert found(make, make.table(quality=(0, 1), broken=(0, many)), few=broken) == "refused"
    assert found(make, make.table(quality=(0, 1), edge=(0, 0.9)), edge=edge) == "undecided"
    assert (
        found(make, make.table(quality=(0.25, noise(0.5)), edge=(0, 0.7)), edge=edge, better=make.rule())
        == "passes"
    )


def test_a_model_without_an_admissible_checkpoint_is_refused_at_once_and_an_unmeasured_figure_decides_nothing(
    make,
):
    table = make.table(quality=(0.25, noise(0.5)), colour=(0.5, 0.5))
    assert found(make, table, selection={"admissible": []}, better=make.rule()) == "refused"
    rows = table.to_pylist()
    rows[-1]["value"] = float("nan")
    assert found(make, table.from_pylist(rows), better=make.rule()) == "undecided"


def staged(make, table, stages=(0.5, 0.75, 1.0)):
    names = [f"prompt {number}" for number in range(12)]
    evaluate = EvaluateSettings(
        num_prompts=12,
        seeds_per_prompt=2,
        metrics=["quality"],
        scorers={},
        real_images=0,
        stages=list(stages),
    )
    gate = make.gate(better=make.rule()).model_copy(update={"resamples": 10_000})
    wanted = expected_rows(names, STYLES, 0, evaluate, None)
    return verdict(table, SELECTION, wanted, seed=0, gate=gate)


def of(table, prompts):
    return table.filter(
        [row in {f"prompt {number}" for number in prompts} for row in table["prompt"].to_pylist()]
    )


@pytest.fixture
def order():
    return balanced_order([f"prompt {number}" for number in range(12)], STYLES, 0)


def test_an_evaluation_that_ended_at_a_stage_is_accepted_if_its_figures_decide(make, order):
    passed = staged(make, of(make.table(quality=(0.25, noise(0.9, 0.01))), order[:9]))
    assert passed["passed"] is True
    assert (passed["num_prompts"], passed["stages"]) == (9, [6, 9, 12])
    assert passed["reason"].endswith("Decided at stage 2 of 3, after 9 of 12 prompts.")
    assert passed["rules"][0]["confidence"] > 0.95
    refused = staged(make, of(make.table(quality=(0.9, noise(0.25, 0.01))), order[:9]))
    assert refused["passed"] is False
    whole = staged(make, make.table(quality=(0.25, noise(0.9, 0.01))))
    assert "Decided at stage" not in whole["reason"]


def test_an_evaluation_that_ended_before_its_figures_decide_is_an_error(make, order):
    table = make.table(quality=(0.25, noise(0.31, 0.1)))
    with pytest.raises(ArtifactError, match="ends after 9 of 12 prompts, but their figures neither refuse"):
        staged(make, of(table, order[:9]))


def test_prompts_that_are_not_the_first_of_the_order_are_not_accepted_however_good_they_are(make, order):
    table = make.table(quality=(0.25, noise(0.9, 0.01)))
    with pytest.raises(
        ArtifactError, match="must have the first 9 prompts with 2 seeds each, but lacks 2 images"
    ):
        staged(make, of(table, [*order[:8], order[10]]))
    with pytest.raises(ArtifactError, match="must have 12 prompts with 2 seeds each, but lacks 8 images"):
        staged(make, of(table, order[:8]))
    with pytest.raises(ArtifactError, match="must have 12 prompts with 2 seeds each, but lacks 6 images"):
        staged(make, of(table, order[:9]), stages=(1.0,))
