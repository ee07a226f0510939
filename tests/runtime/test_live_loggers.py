"""Loggers that show training while it runs."""

import json
import logging
import os
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from srpo_core.runtime.live_loggers import live_loggers
from srpo_core.runtime.shared_files import Location
from srpo_core.training.step_log import log_steps

RUN = "train-0123456789ab"
ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32768


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


def train(path, steps, logger="tensorboard"):
    """Log `steps` as a process of the stage does, while workers append them to the progress file."""
    with (
        live_loggers([logger], RUN, {"seed": 0}) as loggers,
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


def offline_records(path):
    """Yield the records of a file of W&B's offline mode: protocol buffers in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""  # after W&B's own header
    while len(data) - place > 7:
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_weights_and_biases_receives_each_step_once_and_no_log_of_a_resumed_run(home, tmp_path, monkeypatch):
    """Offline, every process writes a file of its own; that of the second has all steps."""
    pytest.importorskip("wandb", reason="an extra; the nightly test below installs it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "progress.jsonl", [1, 2, 3], "wandb")
    train(tmp_path / "progress.jsonl", [3, 4], "wandb")
    _, newest = sorted((home / "wandb").glob(f"offline-run-*-{RUN}/run-{RUN}.wandb"))
    found = list(offline_records(newest))
    (run,) = (one.run for one in found if one.HasField("run"))
    assert (run.run_id, run.project) == (RUN, "srpo")
    assert {one.key: one.value_json for one in run.config.update}["seed"] == "0"
    rows = [one.history for one in found if one.HasField("history")]
    figures = [
        (one.step.num, "/".join(item.nested_key), item.value_json) for one in rows for item in one.item
    ]
    losses = [(step, float(value)) for step, name, value in figures if name == "train/loss"]
    assert losses == [(step, step / 4) for step in (1, 2, 3, 4)]
    assert not any(one.HasField("output_raw") or one.HasField("output") for one in found)


# downloads 25 MB and installs them into an environment of its own, which sees this one's packages
@pytest.mark.nightly
@pytest.mark.network
def test_the_extra_wandb_can_be_installed_and_works_offline(tmp_path):
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "wandb"
    ]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "project.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
    tests = [__file__, "-k", "weights_and_biases", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [python, "-m", "pytest", "-q", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout
