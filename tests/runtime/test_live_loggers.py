"""Loggers that show training while it runs."""

import json
import logging
import struct

import pytest

from srpo_core.runtime.live_loggers import live_loggers
from srpo_core.runtime.shared_files import Location
from srpo_core.training.step_log import log_steps

RUN = "train-0123456789ab"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def scalars(directory):
    """Return (step, name, value) of each scalar in the only event file, in order."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = directory.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])  # after the length's checksum
        data = data[12 + length + 4 :]
        found += [
            (event.step, one.tag, one.simple_value)
            for one in event.summary.value
            if one.HasField("simple_value")
        ]
    return found


def train(path, steps):
    """Log `steps` as a process of the stage does, while workers append them to the progress file."""
    with (
        live_loggers(["tensorboard"], RUN, {"seed": 0}) as loggers,
        log_steps(Location.of(path), 9, loggers),
        path.open("a") as file,
    ):
        for step in steps:
            file.write(json.dumps({"step": step, "loss": step / 4}) + "\n")


def test_a_resumed_run_has_each_step_once_in_tensorboard(home, tmp_path):
    """The second process repeats step 3, whose checkpoint was not complete when the first was killed."""
    train(tmp_path / "progress.jsonl", [1, 2, 3])
    train(tmp_path / "progress.jsonl", [3, 4])
    expected = [(step, "train/loss", step / 4) for step in (1, 2, 3, 4)]
    assert scalars(home / "tensorboard" / RUN) == expected


def test_figures_are_in_the_file_while_training_still_runs(home):
    with live_loggers(["tensorboard"], RUN, {}) as loggers:
        loggers.write({"step": 1, "loss": 0.5, "grad_norm": 2.0})
        assert scalars(home / "tensorboard" / RUN) == [(1, "train/loss", 0.5), (1, "train/grad_norm", 2.0)]


class FullDisk:
    def __init__(self):
        self.calls = 0

    def write(self, step, figures):
        self.calls += 1
        raise OSError("disk full")

    def close(self):
        raise AssertionError("it is off")


def test_a_logger_that_fails_is_dropped_with_one_warning_and_the_others_continue(home, caplog):
    broken = FullDisk()
    with live_loggers(["tensorboard"], RUN, {}) as loggers:
        loggers.working = {"broken": broken, **loggers.working}
        for step in (1, 2):
            loggers.write({"step": step, "loss": 0.5})
    assert broken.calls == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the logger broken failed and is off for the rest of this run: OSError: disk full"
    ]
    assert [step for step, _, _ in scalars(home / "tensorboard" / RUN)] == [1, 2]


def test_a_logger_that_cannot_start_does_not_stop_training(home, caplog):
    (home / "tensorboard").write_text("a file where the directory should be")
    with live_loggers(["tensorboard"], RUN, {}) as loggers:
        loggers.write({"step": 1, "loss": 0.5})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the logger tensorboard failed and is off" in caplog.text


def test_without_loggers_nothing_is_written(home):
    with live_loggers([], RUN, {}) as loggers:
        loggers.write({"step": 1, "loss": 0.5})
    assert list(home.iterdir()) == []
