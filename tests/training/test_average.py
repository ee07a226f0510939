"""The moving average of the weights."""

from itertools import count
from pathlib import Path

import pytest
import torch

from srpo_core.config import EmaSettings, parse_settings, patched, read_values
from srpo_core.errors import ConfigError
from srpo_core.runtime.shared_files import Location
from srpo_core.training.average import WeightAverage
from srpo_core.training.checkpoint import newest_checkpoint, restore
from srpo_core.training.checkpoint_writer import CheckpointWriter
from srpo_core.training.state import TrainState


def layer():
    """A trained weight and a frozen bias."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    module.bias.requires_grad_(requires_grad=False)
    return module


def train(module, average, steps):
    """Set the weight to the number of the step, as if training had; return the average after each step."""
    found = []
    for step in steps:
        torch.nn.init.constant_(module.weight, float(step))
        average.update(step)
        found.append(average.tensors()["weight"][0, 0].item())
    return found


def test_the_average_follows_the_weights_by_the_documented_share():
    """With start 1 and decay 0.2, d after steps 1 to 5 is 0, 0, min(2/11, .2), min(3/12, .2), .2."""
    module = layer()
    average = WeightAverage(module, EmaSettings(decay=0.2, start=1))
    expected = [1.0, 2.0]
    for step, kept in ((3, 2 / 11), (4, 0.2), (5, 0.2)):
        expected.append(kept * expected[-1] + (1 - kept) * step)
    assert train(module, average, range(1, 6)) == pytest.approx(expected, rel=1e-6)
    assert set(average.tensors()) == {"weight"}, "what is not trained has no average"


def test_the_averages_are_the_weights_within_the_context_alone_even_after_an_error():
    module = layer()
    average = WeightAverage(module, EmaSettings(decay=0.9, start=0))
    train(module, average, range(1, 5))
    averaged = average.tensors()["weight"].clone()
    with pytest.raises(OSError, match="disk full"), average.applied():
        assert torch.equal(module.weight, averaged)
        raise OSError("disk full")
    assert module.weight.tolist() == [[4.0, 4.0]]
    assert torch.equal(average.tensors()["weight"], averaged)


def test_an_average_that_would_be_the_weights_in_every_step_is_refused():
    """The first step whose average differs from the weights is start + 2."""
    values = read_values(Path(__file__).parents[2] / "profiles/tiny.yaml")
    steps = values["train"]["steps"]
    averaged = {"train": {"ema": {"decay": 0.9, "start": steps - 2}}}
    assert parse_settings(patched(values, averaged), "here").train.ema.start == steps - 2
    averaged["train"]["ema"]["start"] = steps - 1
    with pytest.raises(ConfigError, match=rf"^here: train: ema\.start {steps - 1} must be at most steps - 2"):
        parse_settings(patched(values, averaged), "here")


@pytest.mark.parametrize("background", [False, True])
def test_an_average_resumed_from_a_checkpoint_continues_with_the_same_bits(tmp_path, background):
    settings = EmaSettings(decay=0.9, start=0)
    module = layer()
    average = WeightAverage(module, settings)
    optimizer = torch.optim.AdamW([module.weight])
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    train(module, average, range(1, 4))
    writer = CheckpointWriter(Location.of(tmp_path), attempt="a", keep=1, background=background)
    writer.save(TrainState(module, optimizer, 3, [{}] * 3, averages=average.tensors()))
    expected = train(module, average, range(4, 8))  # during the write
    writer.finish()
    resumed = layer()
    fresh = WeightAverage(resumed, settings)
    checkpoint = newest_checkpoint(Location.of(tmp_path), count(3, 3))
    restore(checkpoint, resumed, torch.optim.AdamW([resumed.weight]), fresh.tensors())
    assert resumed.weight.tolist() == [[3.0, 3.0]]
    assert train(resumed, fresh, range(4, 8)) == expected
