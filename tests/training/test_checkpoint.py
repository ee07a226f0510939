import logging
import shutil
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.errors import ArtifactError
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import newest_checkpoint, open_checkpoint, restore, step_location
from srpo_core.training.checkpoint_writer import CheckpointWriter
from srpo_core.training.state import TrainState, trained_parameters
from srpo_core.weights.shards import join_shards, read_whole


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
    one.save(TrainState(model, optimizer, step, [{"loss": 1 / n} for n in range(1, step + 1)]))
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


def test_a_checkpoint_has_the_step_the_metrics_and_the_weights(saved):
    root, model, _ = saved
    checkpoint = newest(root)
    assert (checkpoint.step, checkpoint.metrics) == (2, [{"loss": 1.0}, {"loss": 0.5}])
    weights = read_whole(root / "step-000002/weights")
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        name: tensor.tolist() for name, tensor in trained_parameters(model).items()
    }


@pytest.mark.parametrize("background", [False, True])
def test_training_resumed_from_a_checkpoint_equals_uninterrupted_training(saved, background):
    root, model, optimizer = saved
    save(root, 4, model, optimizer, background=background)
    resumed, fresh = restored(root)
    take_steps(model, optimizer, 3)
    take_steps(resumed, fresh, 3)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
    assert torch.equal(resumed.linear.bias, model.linear.bias)


def test_a_background_write_has_the_weights_of_its_step(saved):
    root, model, optimizer = saved
    expected = model.linear.weight.detach().clone()
    one = writer(root, background=True)
    one.save(TrainState(model, optimizer, 4, [{}] * 4))
    take_steps(model, optimizer, 3)  # during the write
    one.finish()
    assert torch.equal(read_whole(root / "step-000004/weights")["linear.weight"], expected)


def test_a_failed_background_write_raises_and_keeps_the_previous_checkpoint(saved, monkeypatch):
    root, model, optimizer = saved

    def full(*_args, **_kwargs):
        raise OSError("disk full")

    one = writer(root, background=True)
    monkeypatch.setattr("srpo_core.training.checkpoint_writer.write_shards", full)
    one.save(TrainState(model, optimizer, 4, [{}] * 4))
    with pytest.raises(OSError, match="disk full"):
        one.finish()
    assert newest(root).step == 2


def test_restoring_keeps_the_learning_rate_and_the_step_count(saved):
    root, model, _ = saved
    resumed, optimizer = restored(root)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.state[resumed.linear.weight]["step"].shape == ()
    assert float(optimizer.state[resumed.linear.weight]["step"]) == 2


def test_resuming_without_the_optimizer_state_gives_other_weights(saved):
    root, model, optimizer = saved
    resumed, _ = restored(root)
    take_steps(model, optimizer, 3)
    take_steps(resumed, adamw(resumed), 3)
    assert not torch.equal(resumed.linear.weight, model.linear.weight)


@pytest.mark.parametrize("part", ["weights", "resume/optimizer"])
def test_one_changed_byte_is_detected(saved, part):
    root, _, _ = saved
    (path,) = (root / "step-000002" / part).glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"damaged: {part}/.* does not have its digest"):
        open_checkpoint(step_location(Location.of(root), 2))


def test_a_checkpoint_has_no_pickle(saved):
    root, _, _ = saved
    names = {path.name.rpartition(".")[2] for path in (root / "step-000002").rglob("*") if path.is_file()}
    assert names == {"safetensors", "json"}


def test_a_damaged_checkpoint_is_logged_in_one_line_and_the_previous_one_is_used(saved, caplog):
    root, model, optimizer = saved
    save(root, 4, model, optimizer)
    (root / "step-000004/state.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert newest(root).step == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert "step-000004 is damaged" in line
    assert line.endswith("; resuming from step 2")


def test_steps_after_a_missing_or_damaged_checkpoint_are_trained_again(saved):
    root, model, optimizer = saved
    for step in (4, 6, 8):
        save(root, step, model, optimizer)
    next((root / "step-000006/weights").iterdir()).unlink()
    assert newest(root).step == 4
    shutil.rmtree(root / "step-000002")
    assert newest(root) is None


def test_only_the_newest_checkpoint_is_verified_unless_it_is_damaged(saved, monkeypatch, caplog):
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
    assert line.endswith("does not have its digest; resuming from step 4")


def test_a_checkpoint_without_the_files_of_another_rank_is_not_committed(saved, monkeypatch):
    """For example on two machines without a shared disk."""
    root, model, optimizer = saved
    monkeypatch.setattr("srpo_core.training.checkpoint_writer.VISIBLE_SECONDS", 0.0)
    monkeypatch.setattr(
        CheckpointWriter, "_merge_ranks", lambda _, own: {**own, "weights/shard-2": "0"} if own else own
    )
    with pytest.raises(
        ArtifactError, match=r"1 of 3 files are missing, the first is weights/shard-2: .* need SRPO_SHARED"
    ):
        save(root, 4, model, optimizer)
    assert newest(root).step == 2
    assert not (root / "step-000004").exists()


def test_the_writer_waits_for_files_of_another_rank_that_become_visible_late(saved, monkeypatch):
    """NFS caches a directory listing for half a minute."""
    root, model, optimizer = saved
    files, calls = Location.files, []

    def late(self):
        found = files(self)
        calls.append(self)
        return (
            [name for name in found if not name.startswith("resume/optimizer")] if len(calls) < 3 else found
        )

    monkeypatch.setattr(Location, "files", late)
    save(root, 4, model, optimizer)
    assert len(calls) >= 3
    monkeypatch.setattr(Location, "files", files)
    assert newest(root).step == 4


def test_only_the_newest_checkpoints_are_resumable_and_all_keep_their_weights(saved):
    root, model, optimizer = saved
    for step in (4, 6, 8):
        save(root, step, model, optimizer, keep=2)
    assert sorted(path.parent.name for path in root.glob("*/resume")) == ["step-000006", "step-000008"]
    assert len(list(root.glob("*/weights/*.safetensors"))) == 4
    next((root / "step-000008/weights").iterdir()).unlink()
    assert newest(root).step == 6


def test_a_kill_during_pruning_keeps_the_newer_checkpoints_resumable(saved):
    root, model, optimizer = saved
    for step in (4, 6):
        save(root, step, model, optimizer)
    next((root / "step-000002/resume/optimizer").iterdir()).unlink()
    assert not open_checkpoint(step_location(Location.of(root), 2)).resumable
    assert newest(root).step == 6
    save(root, 8, model, optimizer, keep=1)
    assert [path.parent.name for path in root.glob("*/resume")] == ["step-000008"], (
        "the next save finishes the pruning"
    )


def test_a_half_written_checkpoint_is_ignored_and_the_next_attempt_deletes_it(saved, monkeypatch):
    root, model, optimizer = saved

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "_commit", killed)
    with pytest.raises(KeyboardInterrupt):
        save(root, 4, model, optimizer, attempt="first")
    monkeypatch.undo()
    assert newest(root).step == 2
    assert list(root.glob(".step-000004.first.part"))
    save(root, 4, model, optimizer, attempt="second")
    assert newest(root).step == 4
    assert not list(root.glob(".*.part"))


def test_saving_without_optimizer_state_of_a_parameter_is_refused(saved):
    root, model, optimizer = saved
    del optimizer.state[model.linear.bias]
    with pytest.raises(ArtifactError, match=r"no state for 1 trained tensors, the first is linear\.bias"):
        save(root, 4, model, optimizer)
    assert newest(root).step == 2


def test_an_empty_directory_has_no_newest_checkpoint(tmp_path):
    assert newest(tmp_path) is None


def test_joined_shards_equal_the_bytes_that_safetensors_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo_core.weights.shards.PORTION", 20)  # forces several chunks
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    model[1].to(torch.bfloat16)
    optimizer = adamw(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save(tmp_path, 2, model, optimizer)
    join_shards(tmp_path / "step-000002/weights", tmp_path / "joined.safetensors")
    save_file(trained_parameters(model), tmp_path / "whole.safetensors", {"format": "pt"})
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert load_file(tmp_path / "joined.safetensors")["1.weight"].dtype is torch.bfloat16


def test_the_error_names_missing_weights(saved):
    root, _, _ = saved
    other = torch.nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match=r"cannot be read as weights: .*Missing key"):
        restore(newest(root), other, adamw(other))


def test_in_object_storage_attempts_do_not_change_each_others_files(saved):
    _, model, optimizer = saved
    far = Location("memory://test-checkpoint/runs")
    save(far.uri, 2, model, optimizer, attempt="first")
    take_steps(model, optimizer, 1)
    (far / "step-000004.straggler/weights/x").write(b"half written")
    save(far.uri, 4, model, optimizer, attempt="second")
    assert not (far / "step-000004.straggler").exists(), "files of no checkpoint are deleted"
    assert [name for name in far.names() if name.startswith("step-")] == [
        "step-000002",
        "step-000002.first",
        "step-000004",
        "step-000004.second",
    ]
    (far / "step-000004.straggler/weights/x").write(b"still writing")
    checkpoint = newest_checkpoint(far, count(2, 2))
    assert (checkpoint.step, checkpoint.location.name) == (4, "step-000004.second")
    resumed = Line()
    fresh = adamw(resumed)
    restore(checkpoint, resumed, fresh)
    assert torch.equal(resumed.linear.weight, model.linear.weight)
    far.delete()


@pytest.mark.s3
def test_checkpoints_in_object_storage_can_be_resumed(saved, bucket):
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
