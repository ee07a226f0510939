import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from srpo_core.algorithm.method import LossTerm
from srpo_core.config import ScheduleSettings, TrainSettings
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import newest_checkpoint, restore
from srpo_core.training.checkpoint_writer import CheckpointWriter
from srpo_core.training.learner import Learner, adamw
from srpo_core.training.schedule import learning_rate
from srpo_core.training.state import TrainState

WHOLE = 0.02


def scheduled(job, name, warmup_steps, *, steps=8):
    schedule = ScheduleSettings(name=name, warmup_steps=warmup_steps)
    optimizer = job.train.optimizer.model_copy(update={"learning_rate": WHOLE, "schedule": schedule})
    return job.train.model_copy(update={"steps": steps, "optimizer": optimizer})


def rates(train):
    return [learning_rate(train, step) for step in range(1, train.steps + 1)]


def test_without_a_schedule_every_step_has_the_learning_rate_of_the_settings_to_the_bit(job):
    assert rates(scheduled(job, "constant", 0)) == [WHOLE] * 8


def test_a_warm_up_rises_in_a_line_to_the_whole_learning_rate(job):
    assert rates(scheduled(job, "constant", 3)) == pytest.approx(
        [WHOLE * share for share in (1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1)]
    )


def test_linear_and_cosine_fall_to_zero_one_step_after_the_last(job):
    assert rates(scheduled(job, "linear", 2)) == pytest.approx(
        [WHOLE * share for share in (1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    )
    falling = [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)]
    assert rates(scheduled(job, "cosine", 0)) == pytest.approx([WHOLE * share for share in falling])


def test_a_warm_up_that_leaves_no_step_with_the_whole_learning_rate_is_refused(job):
    values = scheduled(job, "linear", 8).model_dump()
    with pytest.raises(ValueError, match=r"warmup_steps 8 must be less than steps 8"):
        TrainSettings.model_validate(values)


def learner_of(train):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)

    def squares(model, _reward, batch, _settings):
        yield LossTerm(model.transformer(batch).square().sum(-1), {})

    model = SimpleNamespace(transformer=layer)
    return Learner(model, None, adamw(layer, train), train, squares)


def train_steps(learner, first, last):
    return [learner.step(torch.ones(1, 3) * step, step) for step in range(first, last + 1)]


def test_each_step_moves_the_weights_by_its_learning_rate_and_logs_it(job):
    """AdamW's first step from no moments moves a weight with a nonzero gradient by the learning rate."""
    train = scheduled(job, "linear", 2)
    learner = learner_of(train)
    before = learner.model.transformer.weight.detach().clone()
    (first,) = train_steps(learner, 1, 1)
    assert first["learning_rate"] == pytest.approx(WHOLE / 3)
    moved = (learner.model.transformer.weight.detach() - before).abs()
    assert moved.tolist() == [pytest.approx([WHOLE / 3] * 3, rel=0.01)]
    assert "learning_rate" not in train_steps(learner_of(scheduled(job, "constant", 0)), 1, 1)[0]


def test_a_run_resumed_in_the_middle_of_a_schedule_ends_with_the_same_bits(job, tmp_path):
    train = scheduled(job, "cosine", 3)
    straight = learner_of(train)
    rows = train_steps(straight, 1, 4)
    writer = CheckpointWriter(Location.of(tmp_path), attempt="a", keep=1, background=False)
    writer.save(TrainState(straight.model.transformer, straight.optimizer, 4, rows))
    resumed = learner_of(train)
    restore(
        newest_checkpoint(Location.of(tmp_path), count(4, 4)), resumed.model.transformer, resumed.optimizer
    )
    assert train_steps(resumed, 5, 8) == train_steps(straight, 5, 8)
    assert torch.equal(resumed.model.transformer.weight, straight.model.transformer.weight)
