import logging
import shutil

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from srpo_core.checkpoint import load_optimizer, newest_checkpoint, open_checkpoint, save_checkpoint
from srpo_core.errors import ArtifactError


class Line(ModelMixin, ConfigMixin):
    """The smallest model that diffusers can save."""

    @register_to_config
    def __init__(self, width: int = 3):
        super().__init__()
        self.linear = torch.nn.Linear(width, 1)


def stepped(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    take_steps(model, optimizer, steps)
    return optimizer


def take_steps(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model.linear(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Line()
    optimizer = stepped(model, 2)
    save_checkpoint(tmp_path, 2, model, optimizer, [{"loss": 1.0}, {"loss": 0.5}])
    return tmp_path, model, optimizer


def test_a_checkpoint_holds_step_metrics_and_weights(saved):
    root, model, _ = saved
    checkpoint = newest_checkpoint(root, every=2)
    assert (checkpoint.step, checkpoint.metrics) == (2, [{"loss": 1.0}, {"loss": 0.5}])
    assert torch.equal(Line.from_pretrained(checkpoint.transformer).linear.weight, model.linear.weight)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(saved):
    root, model, optimizer = saved
    checkpoint = newest_checkpoint(root, every=2)
    resumed = Line.from_pretrained(checkpoint.transformer)
    fresh = torch.optim.AdamW(resumed.parameters(), lr=0.1)
    load_optimizer(checkpoint, resumed, fresh)
    take_steps(model, optimizer, 3)
    take_steps(resumed, fresh, 3)
    assert torch.equal(resumed.linear.weight, model.linear.weight)


def test_without_the_moments_training_would_go_on_otherwise(saved):
    root, model, optimizer = saved
    resumed = Line.from_pretrained(newest_checkpoint(root, every=2).transformer)
    take_steps(model, optimizer, 3)
    stepped(resumed, 3)
    assert not torch.equal(resumed.linear.weight, model.linear.weight)


@pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors", "optimizer.safetensors"])
def test_one_altered_byte_is_found(saved, file):
    root, _, _ = saved
    path = root / "step-000002" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"damaged: {file} does not have its digest"):
        open_checkpoint(root / "step-000002")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(saved, caplog):
    root, model, optimizer = saved
    save_checkpoint(root, 4, model, optimizer, [{}] * 4)
    (root / "step-000004/state.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(root, every=2).step == 2
    assert "step-000004 is damaged" in caplog.text


def test_what_lies_behind_a_gap_or_a_damage_is_trained_again(saved):
    root, model, optimizer = saved
    for step in (4, 6, 8):
        save_checkpoint(root, step, model, optimizer, [{}] * step)
    (root / "step-000006/optimizer.safetensors").unlink()
    assert newest_checkpoint(root, every=2).step == 4
    shutil.rmtree(root / "step-000002")
    assert newest_checkpoint(root, every=2) is None


def test_a_half_written_checkpoint_does_not_exist(saved, monkeypatch):
    root, model, optimizer = saved

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(root, 4, model, optimizer, [])
    monkeypatch.undo()
    assert newest_checkpoint(root, every=2).step == 2
    save_checkpoint(root, 4, model, optimizer, [{}] * 4)
    assert newest_checkpoint(root, every=2).step == 4


def test_where_there_is_no_checkpoint_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path, every=2) is None
