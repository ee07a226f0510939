"""DanceGRPO on the tiny base, with what every method of the trainer can do."""

from dataclasses import replace
from itertools import count

import pytest
import torch

from srpo_core.config import RewardSettings
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import WEIGHTS, newest_checkpoint
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

CPU = torch.device("cpu")


@pytest.fixture
def grpo_job(job):
    """Two groups of three images in each of two steps, with two updates a step."""
    options = job.train.dance_grpo.model_copy(
        update={"group_size": 3, "timestep_fraction": 1.0, "updates_per_rollout": 2, "clip_range": 1e-6}
    )
    train = {
        "method": "dance_grpo",
        "dance_grpo": options,
        "batch_size": 2,
        "steps": 2,
        "checkpoint_every": 1,
    }
    return changed(job, **train, sample_prompts=1)


def changed(job, **train):
    return replace(job, train=job.train.model_copy(update=train))


def worker(job):
    return Worker(job, rank=0, world=1, device=CPU)


def weights(checkpoint):
    whole = read_whole(checkpoint.location.path / WEIGHTS)
    return {name: tensor.numpy().tobytes() for name, tensor in whole.items()}


def test_a_resumed_run_with_several_updates_a_step_ends_with_the_same_bits(grpo_job, tmp_path):
    torch.manual_seed(1)
    worker(grpo_job).run()
    straight = newest_checkpoint(grpo_job.state, count(1, 1))
    other = replace(grpo_job, state=Location.of(tmp_path / "interrupted"))
    torch.manual_seed(2)
    worker(changed(other, steps=1)).run()
    worker(replace(other, resume=1)).run()
    resumed = newest_checkpoint(other.state, count(1, 1))
    assert (resumed.step, resumed.metrics) == (straight.step, straight.metrics)
    assert weights(resumed) == weights(straight)
    steps = {float(state["step"]) for state in optimizer_states(worker(replace(other, resume=2)))}
    assert steps == {4.0}, "two updates in each of two steps"


def optimizer_states(one):
    return one.learner.optimizer.state.values()


def test_the_images_of_a_group_can_be_computed_one_by_one(grpo_job):
    """The clip range is that of the settings: rounding of other batch sizes must not decide what is clipped."""
    options = grpo_job.train.dance_grpo.model_copy(update={"clip_range": 1e-2, "updates_per_rollout": 1})
    together, apart = (
        worker(changed(grpo_job, dance_grpo=options, batch_branches=both)) for both in (True, False)
    )
    one, other = together.step(1), apart.step(1)
    # the first update's loss is the mean advantage, which is zero but for rounding
    assert (one.pop("loss"), other.pop("loss")) == pytest.approx((0, 0), abs=1e-3)
    assert other == pytest.approx(one, rel=1e-3)


def test_adapters_and_several_rewards_are_trained(grpo_job):
    rewards = [
        RewardSettings(**grpo_job.rewards[0].model_dump() | {"weight": weight}) for weight in (1.0, 0.5)
    ]
    one = worker(replace(changed(grpo_job, tune="lora"), rewards=rewards))
    trained = [p for p in one.model.transformer.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    metrics = one.step(1)
    each = {name: value for name, value in metrics.items() if name.startswith("reward_wanted_")}
    assert len(each) == 2
    assert metrics["reward_wanted"] == pytest.approx(1.5 * next(iter(each.values())), rel=1e-5)
    assert len(trained) < len(list(one.model.transformer.parameters()))
    assert any(not torch.equal(p.detach(), old) for p, old in zip(trained, before, strict=True))
