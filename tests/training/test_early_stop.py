import json
from dataclasses import replace
from itertools import count

import pytest
import torch

from srpo_core import artifacts
from srpo_core.config import EarlyStop
from srpo_core.errors import ConfigError
from srpo_core.training.batch import read_training_prompts
from srpo_core.training.early_stop import Evaluation, early_stop_reason, evaluations, make_evaluator

RULE = EarlyStop(
    metric="judge_top5",
    objective="relative_reward",
    num_prompts=4,
    seeds_per_prompt=1,
    margin=0.1,
    patience=2,
)


def rows(figures, objectives, every=2):
    """Return the metrics of a run that is evaluated every `every` steps; its base has judge_top5 0.9 and reward 0."""
    made = []
    for figure, objective in zip(figures, objectives, strict=True):
        made += [{"loss": 1.0} for _ in range(every)]
        made[-1] |= {"judge_top5": figure, "relative_reward": objective}
    made[0] |= {"base_judge_top5": 0.9, "base_relative_reward": 0.0}
    return made


def test_stable_figures_do_not_stop_the_run():
    assert early_stop_reason(rows([0.9, 0.85, 0.88], [0.1, 0.2, 0.3]), RULE) is None


def test_falls_at_patience_checkpoints_in_a_row_stop_the_run_with_a_reason():
    assert early_stop_reason(rows([0.95, 0.6], [0.1, 0.2]), RULE) is None
    assert early_stop_reason(rows([0.95, 0.6, 0.5], [0.1, 0.2, 0.3]), RULE) == (
        "judge_top5 of the judge select_judge fell from 0.950 (step 2) to 0.500 (step 6), more than 0.1 at 2 "
        "checkpoints in a row, while relative_reward went from 0.100 to 0.300"
    )


def test_a_recovery_resets_the_count():
    assert early_stop_reason(rows([0.95, 0.6, 0.9, 0.6], [0.1, 0.2, 0.3, 0.4]), RULE) is None


def test_a_fall_together_with_the_objective_does_not_stop_the_run():
    assert early_stop_reason(rows([0.95, 0.6, 0.5], [0.3, 0.2, 0.1]), RULE) is None


def test_a_fall_from_the_figure_of_the_base_stops_the_run():
    assert "fell from 0.900 (step 0) to 0.600 (step 4)" in early_stop_reason(
        rows([0.7, 0.6], [0.1, 0.2]), RULE
    )


def test_a_fall_within_the_margin_does_not_count():
    assert early_stop_reason(rows([0.81, 0.81, 0.81], [0.1, 0.2, 0.3]), RULE) is None


def test_a_run_does_not_stop_between_checkpoints_or_without_a_rule():
    falling = rows([0.5, 0.4], [0.1, 0.2])
    assert early_stop_reason(falling, RULE)
    assert early_stop_reason([*falling, {"loss": 1.0}], RULE) is None
    assert early_stop_reason(falling, None) is None
    assert early_stop_reason([], RULE) is None


def test_the_evaluations_are_the_base_and_every_checkpoint():
    made = rows([0.8, 0.7], [0.1, 0.2])
    assert evaluations(made, RULE) == [
        Evaluation(0, 0.9, 0.0),
        Evaluation(2, 0.8, 0.1),
        Evaluation(4, 0.7, 0.2),
    ]


@pytest.fixture
def known(job, tmp_path, monkeypatch):
    """Return the job with prompts whose subjects the judge knows."""
    from srpo_core.models import encode_prompts
    from srpo_core.models.embeddings import write_embeddings

    (tmp_path / "known").mkdir()
    (tmp_path / "known/assets").symlink_to(job.inputs.path / "assets")
    monkeypatch.chdir(tmp_path / "known")
    prompts = ["popcorn", "axe", "cookie", "bread", "violin"]
    write_embeddings("train", prompts, [""] * 5, encode_prompts(job.model, prompts, batch_size=8))
    return job


def stopping(job, **changes):
    """Return the job with early stop by the judge's subject, and enough sampler steps for recognizable subjects."""
    rule = EarlyStop(
        metric="judge_top5",
        objective="relative_reward",
        num_prompts=5,
        seeds_per_prompt=2,
        margin=0.25,
        patience=1,
    )
    optimizer = job.train.optimizer.model_copy(update={"learning_rate": changes.pop("learning_rate", 2e-5)})
    rollout = job.train.rollout.model_copy(update={"num_inference_steps": 8})
    train = job.train.model_copy(
        update={"early_stop": rule, "optimizer": optimizer, "rollout": rollout, **changes}
    )
    return job.__class__(**{**vars(job), "train": train})


def run(job):
    from srpo_core.training.worker import Worker

    Worker(job, rank=0, world=1, device=torch.device("cpu")).run()


def test_a_metric_that_does_not_fit_the_prompts_is_refused_before_training(job):
    from srpo_core.training.worker import Worker

    odd = job.train.model_copy(update={"early_stop": RULE.model_copy(update={"metric": "beauty"})})
    with pytest.raises(ConfigError, match="unknown metric 'beauty'"):
        Worker(job.__class__(**{**vars(job), "train": odd}), rank=0, world=1, device=torch.device("cpu"))


@pytest.mark.pipeline
def test_a_run_that_destroys_its_images_stops_early_with_a_reason_and_keeps_its_checkpoints(
    known,
):
    """With a learning rate a hundred times too high, the relative reward rises and the subjects are lost."""
    from srpo_core.training import export
    from srpo_core.training.checkpoint import newest_checkpoint
    from srpo_core.training.job import PROGRESS

    wild = stopping(known, learning_rate=2e-3, steps=12)
    run(wild)
    checkpoint = newest_checkpoint(wild.state, count(2, 2))
    assert 2 <= checkpoint.step < 12
    reason = early_stop_reason(checkpoint.metrics, wild.train.early_stop)
    assert "judge_top5 of the judge select_judge fell from" in reason
    steps = len((wild.state / PROGRESS).read_text().splitlines())
    run(
        replace(wild, resume=checkpoint.step)
    )  # a second start of the same run detects immediately that it has ended
    assert len((wild.state / PROGRESS).read_text().splitlines()) == steps == checkpoint.step
    export.export(wild, {"prompts": 5, "wanted": {}, "unwanted": {}})
    outcome = json.loads(artifacts.TRAIN_OUTCOME.read_text())
    assert outcome["stopped_early"] == reason
    assert (outcome["steps"], outcome["planned_steps"]) == (checkpoint.step, 12)
    assert len(list(artifacts.CHECKPOINTS.iterdir())) == checkpoint.step // 2


@pytest.mark.pipeline
def test_a_run_at_the_shipped_learning_rate_does_not_stop_early(known):
    from srpo_core.training.checkpoint import newest_checkpoint

    run(stopping(known))
    metrics = newest_checkpoint(known.state, count(2, 2)).metrics
    assert len(metrics) == 4
    assert [("judge_top5" in row, "base_relative_reward" in row) for row in metrics] == [
        (False, True),
        (True, False),
        (False, False),
        (True, False),
    ]


def evaluator_of(known, **options):
    job = replace(known, train=known.train.model_copy(update={"early_stop": RULE}))
    prompts = read_training_prompts(real_images=False)
    return make_evaluator(job, prompts, **{"device": torch.device("cpu"), **options})


def test_the_judge_is_on_the_device_of_the_rank(known):
    evaluator = evaluator_of(known, device=torch.device("meta"))
    assert next(evaluator.context.judge.parameters()).device.type == "meta"


def test_a_rank_generates_no_larger_batches_than_it_trains_on(known):
    size = known.train.batch_size
    assert evaluator_of(known).generate.batch_size == size
    assert evaluator_of(known, world=2).generate.batch_size == -(-size // 2)
    assert evaluator_of(known, world=4 * size).generate.batch_size == 1
