"""AdamW with moments in 8 bits."""

from itertools import count

import pytest
import torch

from srpo_core.plan.memory import BYTES_OF_MOMENTS
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import newest_checkpoint, restore
from srpo_core.training.checkpoint_writer import CheckpointWriter
from srpo_core.training.learner import adamw
from srpo_core.training.state import TrainState, optimizer_state


def eight_bit(job):
    optimizer = job.train.optimizer.model_copy(update={"kind": "adamw_8bit", "learning_rate": 0.01})
    return job.train.model_copy(update={"optimizer": optimizer})


def model_of(seed):
    """Two weights of 64 blocks, which share bitsandbytes' tables, and biases, whose moments stay in float32."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Linear(128, 128))


def take_steps(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        draws = torch.Generator().manual_seed(step)
        model(torch.randn(4, 128, generator=draws)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("background", [False, True])
def test_training_resumed_with_moments_in_8_bits_ends_with_the_same_bits(job, tmp_path, background):
    train = eight_bit(job)
    model = model_of(0)
    optimizer = adamw(model, train)
    take_steps(model, optimizer, range(3))
    writer = CheckpointWriter(Location.of(tmp_path), attempt="a", keep=1, background=background)
    writer.save(TrainState(model, optimizer, 3, [{}] * 3))
    take_steps(model, optimizer, range(3, 6))
    writer.finish()
    resumed = model_of(1)
    fresh = adamw(resumed, train)
    restore(newest_checkpoint(Location.of(tmp_path), count(3, 3)), resumed, fresh)
    take_steps(resumed, fresh, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    state, expected = (optimizer_state(one, of) for one, of in ((resumed, fresh), (model, optimizer)))
    assert state["0.weight:state1"].dtype is torch.uint8
    assert state["1.weight:step"].tolist() == [6]
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_the_moments_take_the_bytes_that_the_plan_counts(job):
    model = model_of(0)
    for kind, settings in (("adamw", job.train), ("adamw_8bit", eight_bit(job))):
        optimizer = adamw(model, settings)
        take_steps(model, optimizer, range(1))
        moments = [
            tensor
            for name, tensor in optimizer.state[model[0].weight].items()
            if name != "step" and not name.startswith("qmap")  # one table for all tensors
        ]
        assert sum(t.numel() * t.element_size() for t in moments) == BYTES_OF_MOMENTS[kind] * 128 * 128


def test_only_the_weights_that_require_a_gradient_change(job):
    model = model_of(0)
    bias = model[0].bias.requires_grad_(requires_grad=False)
    before = bias.detach().clone()
    take_steps(model, adamw(model, eight_bit(job)), range(2))
    assert torch.equal(bias, before)
