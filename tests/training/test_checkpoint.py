import logging
import shutil
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.errors import ArtifactError
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import (
    CheckpointWriter,
    TrainState,
    newest_checkpoint,
    open_checkpoint,
    restore,
    step_location,
    trained,
)
from srpo_core.weights.shards import join_shards, read_whole

CURSOR = {"images": 8, "epoch": 1, "place": 3}


class Line(torch.nn.Module):
    """The smallest model."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def take_steps(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model.linear(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()


def writer(root, *, keep=9, background=False, attempt="a"):
    return CheckpointWriter(Location.of(root), attempt=attempt, keep=keep, background=background)


def save(root, step, model, optimizer, **options):
    one = writer(root, **options)
    one.save(TrainState(model, optimizer, step, CURSOR, [{"loss": 1 / n} for n in range(1, step + 1)]))
    one.finish()


def newest(root):
    return newest_checkpoint(Location.of(root), count(2, 2))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Line()
    optimizer = adamw(model)
    take_steps(model, optimizer, 2)
    save(tmp_path, 2, model, optimizer)
    return tmp_path, model, optimizer


def restored(root):
    model = Line()
    optimizer = adamw(model)
    restore(newest(root), model, optimizer)
    return model, optimizer


def test_a_checkpoint_holds_step_metrics_cursor_and_weights(saved):
    root, model, _ = saved
    checkpoint = newest(root)
    assert (checkpoint.step, checkpoint.metrics) == (2, [{"loss": 1.0}, {"loss": 0.5}])
    assert checkpoint.cursor == CURSOR
    weights = read_whole(root / "step-000002/weights")
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        name: tensor.tolist() for name, tensor in trained(model).items()
    }


@pytest.mark.parametrize("background", [False, True])
def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(saved, background):
    root, model, optimizer = saved
    save(root, 4, model, optimizer, background=background)
    resumed, fresh = restored(root)
    take_steps(model, optimizer, 3)
    take_steps(resumed, fresh, 3)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
    assert torch.equal(resumed.linear.bias, model.linear.bias)


def test_what_is_written_in_the_background_is_what_was_there_at_its_step(saved):
    root, model, optimizer = saved
    then = model.linear.weight.detach().clone()
    one = writer(root, background=True)
    one.save(TrainState(model, optimizer, 4, CURSOR, [{}] * 4))
    take_steps(model, optimizer, 3)  # while it is written
    one.finish()
    assert torch.equal(read_whole(root / "step-000004/weights")["linear.weight"], then)


def test_a_background_write_that_fails_is_told_and_leaves_the_checkpoint_before_it(saved, monkeypatch):
    root, model, optimizer = saved

    def full(*_args, **_kwargs):
        raise OSError("disk full")

    one = writer(root, background=True)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    one.save(TrainState(model, optimizer, 4, CURSOR, [{}] * 4))
    with pytest.raises(OSError, match="disk full"):
        one.finish()
    assert newest(root).step == 2


def test_the_generators_go_on_where_they_were(saved):
    root, _, _ = saved
    expected = torch.rand(3)  # drawn after the checkpoint was saved
    torch.manual_seed(99)
    restored(root)
    assert torch.equal(torch.rand(3), expected)


def test_restoring_moves_no_weight_and_leaves_the_learning_rate(saved):
    root, model, _ = saved
    resumed, optimizer = restored(root)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.state[resumed.linear.weight]["step"].shape == ()
    assert float(optimizer.state[resumed.linear.weight]["step"]) == 2


def test_without_the_moments_training_would_go_on_otherwise(saved):
    root, model, optimizer = saved
    resumed, _ = restored(root)
    take_steps(model, optimizer, 3)
    take_steps(resumed, adamw(resumed), 3)
    assert not torch.equal(resumed.linear.weight, model.linear.weight)


@pytest.mark.parametrize("part", ["weights", "resume/optimizer", "resume/random"])
def test_one_altered_byte_is_found(saved, part):
    root, _, _ = saved
    (path,) = (root / "step-000002" / part).glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"damaged: {part}/.* does not have its digest"):
        open_checkpoint(step_location(Location.of(root), 2))


def test_nothing_in_a_checkpoint_is_a_pickle(saved):
    root, _, _ = saved
    names = {path.name.rpartition(".")[2] for path in (root / "step-000002").rglob("*") if path.is_file()}
    assert names == {"safetensors", "json"}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used_in_one_line(saved, caplog):
    root, model, optimizer = saved
    save(root, 4, model, optimizer)
    (root / "step-000004/state.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert newest(root).step == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert "step-000004 is damaged" in line
    assert line.endswith("; going on from step 2")


def test_what_lies_behind_a_gap_or_a_damage_is_trained_again(saved):
    root, model, optimizer = saved
    for step in (4, 6, 8):
        save(root, step, model, optimizer)
    next((root / "step-000006/weights").iterdir()).unlink()
    assert newest(root).step == 4
    shutil.rmtree(root / "step-000002")
    assert newest(root) is None


def test_only_the_checkpoint_to_go_on_from_is_read_and_one_that_is_altered_gives_way(
    saved, monkeypatch, caplog
):
    root, model, optimizer = saved
    for step in (4, 6):
        save(root, step, model, optimizer)
    read = []
    sha256 = Location.sha256
    monkeypatch.setattr(Location, "sha256", lambda file: read.append(file.uri) or sha256(file))
    assert newest(root).step == 6
    assert read
    assert all("/step-000006/" in uri for uri in read)
    (path,) = (root / "step-000006/resume/optimizer").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with caplog.at_level(logging.WARNING):
        assert newest(root).step == 4
    (line,) = (record.getMessage() for record in caplog.records)
    assert "step-000006 is damaged: resume/optimizer/" in line
    assert line.endswith("does not have its digest; going on from step 4")


def test_a_checkpoint_without_the_files_of_another_rank_does_not_appear(saved, monkeypatch):
    """As on two machines that write to disks of their own."""
    root, model, optimizer = saved
    monkeypatch.setattr("srpo_core.training.checkpoint.SETTLE", 0.0)
    monkeypatch.setattr(
        CheckpointWriter, "_of_all_ranks", lambda _, mine: {**mine, "weights/shard-2": "0"} if mine else mine
    )
    with pytest.raises(ArtifactError, match=r"1 of 4 files are missing, weights/shard-2 .* need SRPO_SHARED"):
        save(root, 4, model, optimizer)
    assert newest(root).step == 2
    assert not (root / "step-000004").exists()


def test_files_of_another_rank_that_show_late_are_waited_for(saved, monkeypatch):
    """As NFS does, which keeps a listing for half a minute."""
    root, model, optimizer = saved
    honest, asked = Location.files, []

    def late(self):
        found = honest(self)
        asked.append(self)
        return [name for name in found if not name.startswith("resume/random")] if len(asked) < 3 else found

    monkeypatch.setattr(Location, "files", late)
    save(root, 4, model, optimizer)
    assert len(asked) >= 3
    monkeypatch.setattr(Location, "files", honest)
    assert newest(root).step == 4


def test_the_newest_can_be_resumed_and_every_one_keeps_its_weights(saved):
    root, model, optimizer = saved
    for step in (4, 6, 8):
        save(root, step, model, optimizer, keep=2)
    assert sorted(path.parent.name for path in root.glob("*/resume")) == ["step-000006", "step-000008"]
    assert len(list(root.glob("*/weights/*.safetensors"))) == 4
    next((root / "step-000008/weights").iterdir()).unlink()
    assert newest(root).step == 6


def test_a_kill_in_the_midst_of_thinning_out_leaves_the_newer_checkpoints_to_go_on_from(saved):
    root, model, optimizer = saved
    for step in (4, 6):
        save(root, step, model, optimizer)
    next((root / "step-000002/resume/optimizer").iterdir()).unlink()
    assert not open_checkpoint(step_location(Location.of(root), 2)).resumable
    assert newest(root).step == 6
    save(root, 8, model, optimizer, keep=1)
    assert [path.parent.name for path in root.glob("*/resume")] == ["step-000008"], "and is finished later"


def test_a_half_written_checkpoint_does_not_exist_and_the_next_attempt_clears_it_away(saved, monkeypatch):
    root, model, optimizer = saved

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save(root, 4, model, optimizer, attempt="first")
    monkeypatch.undo()
    assert newest(root).step == 2
    assert list(root.glob(".step-000004.first.part"))
    save(root, 4, model, optimizer, attempt="second")
    assert newest(root).step == 4
    assert not list(root.glob(".*.part"))


def test_a_checkpoint_that_would_lack_moments_is_refused_when_it_is_saved(saved):
    root, model, optimizer = saved
    del optimizer.state[model.linear.bias]
    with pytest.raises(ArtifactError, match=r"no state of 1 trained tensors, linear\.bias the first"):
        save(root, 4, model, optimizer)
    assert newest(root).step == 2


def test_where_there_is_no_checkpoint_there_is_none(tmp_path):
    assert newest(tmp_path) is None


def test_joined_shards_are_the_bytes_that_safetensors_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo_core.weights.shards.PORTION", 20)  # so that it takes several portions
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    model[1].to(torch.bfloat16)
    optimizer = adamw(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save(tmp_path, 2, model, optimizer)
    join_shards(tmp_path / "step-000002/weights", tmp_path / "joined.safetensors")
    save_file(trained(model), tmp_path / "whole.safetensors", {"format": "pt"})
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert load_file(tmp_path / "joined.safetensors")["1.weight"].dtype is torch.bfloat16


def test_weights_that_are_missing_are_named(saved):
    root, _, _ = saved
    other = torch.nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match=r"cannot be read as weights: .*Missing key"):
        restore(newest(root), other, adamw(other))


def test_in_object_storage_no_attempt_touches_the_files_of_another(saved):
    _, model, optimizer = saved
    far = Location("memory://test-checkpoint/runs")
    save(far.uri, 2, model, optimizer, attempt="first")
    take_steps(model, optimizer, 1)
    (far / "step-000004.straggler/weights/x").write(b"half written")
    save(far.uri, 4, model, optimizer, attempt="second")
    assert not (far / "step-000004.straggler").exists(), "what no checkpoint counts is cleared away"
    assert [name for name in far.names() if name.startswith("step-")] == [
        "step-000002",
        "step-000002.first",
        "step-000004",
        "step-000004.second",
    ]
    (far / "step-000004.straggler/weights/x").write(b"it goes on writing")
    checkpoint = newest_checkpoint(far, count(2, 2))
    assert (checkpoint.step, checkpoint.location.name) == (4, "step-000004.second")
    resumed = Line()
    fresh = adamw(resumed)
    restore(checkpoint, resumed, fresh)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
    far.delete()


@pytest.mark.s3
def test_checkpoints_in_object_storage_are_resumed_from_as_those_on_disk(saved, bucket):
    _, model, optimizer = saved
    far = f"s3://{bucket}/runs/resume"
    save(far, 2, model, optimizer)
    save(far, 4, model, optimizer, keep=1)
    checkpoint = newest_checkpoint(Location.of(far), count(2, 2))
    assert checkpoint.step == 4
    assert not open_checkpoint(Location.of(f"{far}/step-000002")).resumable
    resumed = Line()
    fresh = adamw(resumed)
    restore(checkpoint, resumed, fresh)
    take_steps(model, optimizer, 2)
    take_steps(resumed, fresh, 2)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
