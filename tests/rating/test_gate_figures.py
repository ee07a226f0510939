"""Rules of the gate about people's ratings: measured from finished tasks, and refused with a way to collect what is missing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from simulated_people import People, level_answers, paired_answers

from srpo_core import artifacts
from srpo_core.config import EvaluateSettings, GateRule, GateSettings, load_settings
from srpo_core.errors import ArtifactError, ConfigError, GateError
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.people import automatic_rules
from srpo_core.gates.spending import Stage
from srpo_core.gates.staged import outcome
from srpo_core.models.embeddings import write_embeddings
from srpo_core.preflight.consistency import require_consistent
from srpo_core.protocols import Condition
from srpo_core.rating.gate_figures import version_of
from srpo_core.rating.predictions import predictions
from srpo_core.rating.stored import About, path_of, write_ratings
from srpo_core.rating.weights import weights_digest
from srpo_core.stages import gate as stage

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = load_settings(ROOT / "params.yaml")
MODEL = SETTINGS.model.model_copy(update={"path": str(ROOT / SETTINGS.model.path)})
PROMPTS = [f"prompt {number}" for number in range(24)]
STYLES = ["photo" if number % 2 == 0 else "anime" for number in range(24)]
CHECKPOINT = Path("checkpoint")
EVALUATE = EvaluateSettings(
    num_prompts=24, seeds_per_prompt=1, metrics=["judge_wanted"], scorers={}, real_images=0, stages=[1.0]
)
RULE = {
    "against": "base",
    "side": "at_least",
    "severity": "refuse",
    "meaning": "people prefer the images",
}
KEPT = GateRule(metric="judge_wanted", compare="difference", margin=-1.0, **RULE)
PREFERRED = GateRule(metric="people_win_rate", compare="win_rate", margin=0.5, **RULE)
EXCELLENT = GateRule(metric="people_excellent.realism", compare="difference", margin=0.0, **RULE)


def gate_of(*ratings, **rules):
    return GateSettings(
        confidence=0.95,
        resamples=500,
        objective="judge_wanted",
        rules={"kept": KEPT, **rules},
        ratings=list(ratings),
    )


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """An evaluation in which the automatic score prefers the aligned image of all prompts but the first four."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / CHECKPOINT).mkdir()
    (tmp_path / CHECKPOINT / "config.json").write_text("{}")
    (tmp_path / CHECKPOINT / "model.safetensors").write_bytes(b"weights")
    rows = [
        {"model": model, "prompt": prompt, "style": style, "seed": 0, "metric": "judge_wanted"}
        | {"value": 0.5 if model == "base" else (0.4 if number < 4 else 0.6 + 0.01 * number)}
        for model in ("base", "aligned")
        for number, (prompt, style) in enumerate(zip(PROMPTS, STYLES, strict=True))
    ]
    artifacts.FIGURES.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), artifacts.FIGURES)
    means = {
        model: {"judge_wanted": float(np.mean([one["value"] for one in rows if one["model"] == model]))}
        for model in ("base", "aligned")
    }
    artifacts.write_json(artifacts.EVALUATION_SUMMARY, {"means": means})
    artifacts.write_json(
        artifacts.SELECTION,
        {"step": 1, "admissible": [1], "reason": "", "curve": [], "checkpoint": str(CHECKPOINT)},
    )
    write_embeddings("test", PROMPTS, STYLES, Condition({"t": torch.zeros(24, 1)}))
    return tmp_path


def about(*, complete=4, closed="", looked_early=False, digest=None):
    own = digest or weights_digest(MODEL, CHECKPOINT)
    return About({"step-1": own, "base": "b"}, 24, 4, complete, 0.2, 0.8, closed, looked_early)


def finish(answers, task="0123456789ab", **changes):
    path = path_of(task)
    write_ratings(path, answers, about(**changes))
    return version_of(path)


def preferring(gain, seed=0):
    generator = np.random.default_rng(seed)
    return paired_answers(
        People(gain=gain).values(4, 24, generator), generator, first="base", second="step-1"
    )


def run(gate):
    stage.run(seed=0, champion=None, model=MODEL, evaluate=EVALUATE, gate=gate)
    return artifacts.read_json(artifacts.DECISION)


@pytest.mark.usefixtures("evaluated")
def test_people_who_prefer_the_model_let_it_pass_and_those_who_prefer_the_base_refuse_it():
    passed = run(gate_of(finish(preferring(1.5)), preferred=PREFERRED))
    (_, rule) = passed["rules"]
    assert passed["verdict"] == "passed"
    assert rule["low"] > 0.5
    assert rule["reason"].startswith("by people_win_rate, ")
    refused = run(gate_of(finish(preferring(-1.0)), preferred=PREFERRED))
    assert refused["verdict"] == "refused"
    assert refused["rules"][1]["verdict"] == "refuses"
    warned = run(
        gate_of(finish(preferring(-1.0)), preferred=PREFERRED.model_copy(update={"severity": "warn"}))
    )
    assert (warned["verdict"], warned["rules"][1]["verdict"]) == ("passed", "warns")


@pytest.mark.usefixtures("evaluated")
def test_shares_of_excellent_images_decide_against_a_margin():
    generator = np.random.default_rng(3)
    entry = finish(level_answers(4, 24, {"step-1": 0.6, "base": 0.1}, generator))
    decision = run(gate_of(entry, realism=EXCELLENT))
    assert decision["verdict"] == "passed"
    assert 0.3 < decision["rules"][1]["value"] < 0.7
    stricter = EXCELLENT.model_copy(update={"margin": 0.9})
    assert run(gate_of(entry, realism=stricter))["verdict"] == "refused"


@pytest.mark.usefixtures("evaluated")
def test_without_finished_ratings_the_stage_exits_with_3_and_says_how_to_collect_them():
    with pytest.raises(GateError) as refusal:
        run(gate_of(preferred=PREFERRED))
    assert refusal.value.exit_code == 3
    text = str(refusal.value)
    assert text.startswith("gate.rules.preferred: no finished ratings compare this checkpoint with the base")
    assert "'srpo rate checkpoint --against base --protocol paired'" in text
    assert not artifacts.DECISION.exists()
    # a rule that only warns does not wait
    warning = PREFERRED.model_copy(update={"severity": "warn"})
    assert run(gate_of(preferred=warning))["rules"][1]["verdict"] == "warns"


@pytest.mark.parametrize(
    "changes",
    [{"complete": 3}, {"digest": "0" * 64}],
    ids=["before the planned end", "of other weights"],
)
@pytest.mark.usefixtures("evaluated")
def test_ratings_that_have_not_ended_or_are_of_other_weights_count_as_none(changes):
    with pytest.raises(GateError, match="no finished ratings"):
        run(gate_of(finish(preferring(1.5), **changes), preferred=PREFERRED))


@pytest.mark.usefixtures("evaluated")
def test_a_task_that_was_closed_unseen_counts_and_one_that_was_looked_at_has_wider_intervals():
    plain = run(gate_of(finish(preferring(0.8)), preferred=PREFERRED))["rules"][1]
    closed = run(gate_of(finish(preferring(0.8), complete=2, closed="time is up"), preferred=PREFERRED))
    seen = run(gate_of(finish(preferring(0.8), looked_early=True), preferred=PREFERRED))
    assert (closed["rules"][1]["low"], closed["rules"][1]["high"]) == (plain["low"], plain["high"])
    assert seen["rules"][1]["low"] < plain["low"]
    assert seen["people"]["tasks"][0]["looked_early"] is True


@pytest.mark.usefixtures("evaluated")
def test_an_answer_with_an_impossible_time_is_set_aside_with_a_warning_and_the_others_decide(caplog):
    answers = preferring(1.5)
    late = replace(answers[0], rater="late", seconds=1e6)
    decision = run(gate_of(finish([*answers, late]), preferred=PREFERRED))
    assert decision["verdict"] == "passed"
    assert decision["people"]["tasks"][0]["raters"] == 4
    assert "1 answer set aside: impossible_time 1" in caplog.text


@pytest.mark.usefixtures("evaluated")
def test_other_bytes_than_the_digest_says_are_refused():
    entry = finish(preferring(1.5))
    finish(preferring(1.5, seed=1))
    with pytest.raises(ArtifactError, match=f"gate.ratings has {entry}, but .* is 0123456789ab:"):
        run(gate_of(entry, preferred=PREFERRED))


@pytest.mark.usefixtures("evaluated")
def test_the_decision_says_how_well_each_score_predicted_people():
    """All prefer the aligned image of every prompt; the score agrees with 20 of 24."""
    generator = np.random.default_rng(0)
    answers = paired_answers(np.ones((4, 24)), generator, first="base", second="step-1")
    people = run(gate_of(finish(answers), preferred=PREFERRED))["people"]
    found = people["predicted"]["base"]["judge_wanted"]
    assert found["agreement"] == pytest.approx(20 / 24)
    assert found["low"] < 20 / 24 < found["high"]
    assert found["pairs"] == 24
    assert found["correlation"] is None  # everybody agrees, so there is no order
    assert people["tasks"] == [
        {"task": "0123456789ab", "protocol": "paired", "raters": 4, "answers": 96}
        | {"looked_early": False, "closed": ""}
    ]
    assert "r0" not in json.dumps(people)


def test_the_rank_correlation_is_that_of_the_shares_and_the_differences():
    generator = np.random.default_rng(0)
    values = (np.arange(4)[:, None] < np.arange(6) % 5).astype(float)  # 0, 1, 2, 3, 4, 0 of 4 raters
    answers = [
        replace(one, second="aligned")
        for one in paired_answers(values, generator, first="base", second="aligned")
    ]
    rows = [
        {"model": model, "prompt": f"prompt {n}", "seed": 0, "metric": "score", "value": value}
        for n, gap in enumerate([-2.0, -1.0, 0.0, 1.0, 2.0, -2.0])
        for model, value in (("base", 0.0), ("aligned", gap))
    ]
    found = predictions(answers, pa.Table.from_pylist(rows), other="base", named="base", confidence=0.95)
    assert found["score"]["correlation"] == pytest.approx(1.0)
    assert found["score"]["agreement"] == 1.0
    assert found["score"]["pairs"] == 5  # half of the raters each way is no preference


@pytest.mark.usefixtures("evaluated")
def test_an_evaluation_does_not_pass_early_while_people_have_not_decided():
    pairs = pair_up(pq.read_table(artifacts.FIGURES), artifacts.FIGURES)
    early = Stage(0, (24, 48))
    only = gate_of().model_copy(update={"resamples": 10_000})
    assert outcome(pairs, {"admissible": [1]}, seed=0, gate=only, stage=early) == "passes"
    waiting = only.model_copy(update={"rules": {"kept": KEPT, "preferred": PREFERRED}})
    assert outcome(pairs, {"admissible": [1]}, seed=0, gate=waiting, stage=early) == "undecided"
    lost = waiting.model_copy(
        update={"rules": {**waiting.rules, "kept": KEPT.model_copy(update={"margin": 0.9})}}
    )
    assert outcome(pairs, {"admissible": [1]}, seed=0, gate=lost, stage=early) == "refused"
    assert set(automatic_rules(waiting.rules)) == {"kept"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"compare": "difference"},
        {"tie": 0.1},
        {"metric": "people_excellent.realism"},
        {"metric": "people_likes"},
    ],
    ids=str,
)
def test_a_rule_that_does_not_fit_is_refused_before_a_run(wrong):
    rule = PREFERRED.model_copy(update=wrong)
    rules = {**SETTINGS.gate.rules, "preferred": rule}
    settings = SETTINGS.model_copy(update={"gate": SETTINGS.gate.model_copy(update={"rules": rules})})
    with pytest.raises(ConfigError, match=r"gate\.rules\.preferred"):
        require_consistent(settings)
    good = {**SETTINGS.gate.rules, "preferred": PREFERRED, "realism": EXCELLENT}
    require_consistent(SETTINGS.model_copy(update={"gate": SETTINGS.gate.model_copy(update={"rules": good})}))
