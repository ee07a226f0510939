import json

import pytest
import torch

from srpo_core import artifacts
from srpo_core.config import EarlyStop
from srpo_core.early_stop import Judged, judged, over_trained
from srpo_core.errors import ConfigError

RULE = EarlyStop(metric="judge_top5", num_prompts=4, seeds_per_prompt=1, margin=0.1, patience=2)


def rows(figures, losses, every=2, base=0.9, base_loss=2.0):
    """Rows of metrics of a run that was judged at every `every` steps."""
    made = []
    for figure, loss in zip(figures, losses, strict=True):
        made += [{"loss": loss} for _ in range(every)]
        made[-1]["judge_top5"] = figure
    if made:
        made[0] |= {"base_judge_top5": base, "loss": base_loss}
    return made


def test_a_judge_that_keeps_its_opinion_lets_the_run_go_on():
    assert over_trained(rows([0.9, 0.85, 0.88], [1.9, 1.8, 1.7]), RULE) is None


def test_a_fall_at_as_many_checkpoints_in_a_row_as_patience_says_ends_the_run_and_is_told():
    assert over_trained(rows([0.95, 0.6], [1.9, 1.8]), RULE) is None
    reason = over_trained(rows([0.95, 0.6, 0.5], [1.9, 1.8, 1.7]), RULE)
    assert reason == (
        "judge_top5 of the judge select_judge fell from 0.950 (step 2) to 0.500 (step 6), more than 0.1 at 2 "
        "checkpoints in a row, while the loss went from 1.9500 to 1.7000"
    )


def test_a_recovery_starts_the_count_anew():
    assert over_trained(rows([0.95, 0.6, 0.9, 0.6], [1.9, 1.8, 1.7, 1.6]), RULE) is None


def test_a_fall_while_the_loss_rises_is_not_over_training():
    assert over_trained(rows([0.95, 0.6, 0.5], [1.5, 2.1, 2.2]), RULE) is None


def test_a_run_that_falls_from_the_bases_own_figure_ends():
    reason = over_trained(rows([0.7, 0.6], [1.9, 1.8]), RULE)
    assert "fell from 0.900 (step 0) to 0.600 (step 4)" in reason


def test_a_fall_within_the_margin_counts_as_none():
    assert over_trained(rows([0.81, 0.81, 0.81], [1.9, 1.8, 1.7]), RULE) is None


def test_between_checkpoints_and_without_a_rule_nothing_ends():
    falling = rows([0.5, 0.4], [1.9, 1.8])
    assert over_trained(falling, RULE)
    assert over_trained([*falling, {"loss": 1.0}], RULE) is None
    assert over_trained(falling, None) is None
    assert over_trained([], RULE) is None


def test_each_judged_checkpoint_has_the_mean_loss_of_its_own_steps():
    made = rows([0.8, 0.7], [1.5, 1.0], base_loss=2.5)
    assert judged(made, RULE) == [Judged(0, 0.9, 2.5), Judged(2, 0.8, 2.0), Judged(4, 0.7, 1.0)]


def stopping(job, **changes):
    """The job with an early stop by the subject that the judge sees, and pictures good enough to see one."""
    rule = EarlyStop(metric="judge_top5", num_prompts=5, seeds_per_prompt=2, margin=0.15, patience=1)
    optimizer = job.train.optimizer.model_copy(update={"learning_rate": changes.pop("learning_rate", 2e-5)})
    rollout = job.train.rollout.model_copy(update={"steps": 8})
    train = job.train.model_copy(
        update={"early_stop": rule, "optimizer": optimizer, "rollout": rollout, **changes}
    )
    return job.__class__(**{**vars(job), "train": train})


def run(job):
    from srpo_core.trainer import Worker

    Worker(job, rank=0, world=1, device=torch.device("cpu")).run()


def test_a_metric_that_these_prompts_do_not_allow_is_refused_before_training(job):
    from srpo_core.trainer import Worker

    odd = job.train.model_copy(update={"early_stop": RULE.model_copy(update={"metric": "beauty"})})
    with pytest.raises(ConfigError, match="unknown metric 'beauty'"):
        Worker(job.__class__(**{**vars(job), "train": odd}), rank=0, world=1, device=torch.device("cpu"))


@pytest.mark.pipeline
def test_a_run_that_destroys_its_pictures_ends_early_with_its_checkpoints_and_the_reason(
    job, tmp_path, monkeypatch
):
    """A learning rate a hundred times too high on the tiny family: the relative reward rises, the subjects go."""
    from srpo_core.checkpoint import newest_checkpoint
    from srpo_core.stages import train
    from srpo_core.trainer import PROGRESS

    wild = stopping(job, learning_rate=2e-3, steps=20)
    run(wild)
    checkpoint = newest_checkpoint(wild.state, every=2)
    assert 2 <= checkpoint.step < 20
    reason = over_trained(checkpoint.metrics, wild.train.early_stop)
    assert "judge_top5 of the judge select_judge fell from" in reason
    steps = len((wild.state / PROGRESS).read_text().splitlines())
    run(wild)  # a second start of the same run sees at once that it has ended
    assert len((wild.state / PROGRESS).read_text().splitlines()) == steps == checkpoint.step
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train.export(wild.state, wild.train, {"wanted": {}, "unwanted": {}})
    outcome = json.loads(artifacts.TRAIN_OUTCOME.read_text())
    assert outcome["stopped_early"] == reason
    assert (outcome["steps"], outcome["planned_steps"]) == (checkpoint.step, 20)
    assert len(list(artifacts.CHECKPOINTS.iterdir())) == checkpoint.step // 2


@pytest.mark.pipeline
def test_a_run_at_the_shipped_learning_rate_is_not_ended(job):
    from srpo_core.checkpoint import newest_checkpoint

    run(stopping(job))
    metrics = newest_checkpoint(job.state, every=2).metrics
    assert len(metrics) == 4
    assert [("judge_top5" in row, "base_judge_top5" in row) for row in metrics] == [
        (False, True),
        (True, False),
        (False, False),
        (True, False),
    ]
