import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.runtime import resume
from srpo_core.runtime.timings import (
    Attempt,
    attempts_of,
    devices_of,
    directory_of,
    key_of,
    newest_attempts,
    timed,
    usual_seconds,
)

ROOT = Path(__file__).resolve().parents[2]
DVC = """\
stages:
  ingest: {cmd: "true", deps: ["${data}"], params: [seed]}
  train: {cmd: "true", deps: [weights], params: [seed, train]}
"""
# a stage that is killed: it says when its time has been noted, and then waits
STAGE = """\
import sys, time
from pathlib import Path
from srpo_core.config import load_settings
from srpo_core.runtime.timings import attempts_of, timed
with timed("train", load_settings(Path(sys.argv[1])).resources, beat=0.02):
    while not attempts_of("train")[-1].seconds:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def resources(tmp_path, monkeypatch):
    """The tiny preset's resources, in a small project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 3}, data: data}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("one")
    (tmp_path / "weights").write_bytes(bytes(3 * 2**20))
    return load_settings(ROOT / "profiles/tiny.yaml").resources


def run(stage, resources, *, fails=False):
    with timed(stage, resources):
        time.sleep(0.002)
        if fails:
            raise ValueError("no")


def test_an_attempt_has_its_time_devices_price_and_end(resources):
    priced = resources.model_copy(
        update={"use_gpu": True, "train_workers": 8, "price": 2.5, "currency": "EUR"}
    )
    run("train", priced)
    (attempt,) = attempts_of("train")
    assert attempt.seconds >= 0.002
    assert attempt.device_seconds == 8 * attempt.seconds
    assert (attempt.devices, attempt.kind, attempt.price, attempt.currency) == (8, "GPU", 2.5, "EUR")
    assert attempt.completed
    assert not attempt.continues
    assert attempts_of("ingest") == []


def test_training_and_generation_use_their_workers_and_other_stages_one_gpu_or_the_machine(resources):
    wide = {"train_workers": 8, "generate_workers": 32}
    gpus = resources.model_copy(update=wide | {"use_gpu": True})
    found = {stage: devices_of(stage, gpus) for stage in ("train", "select", "evaluate", "quantize", "embed")}
    assert found == {
        "train": (8, "GPU"),
        "select": (32, "GPU"),
        "evaluate": (32, "GPU"),
        "quantize": (1, "GPU"),
        "embed": (1, "GPU"),
    }
    assert {devices_of(stage, gpus) for stage in ("ingest", "gate", "report")} == {(1, "machine")}
    assert devices_of("train", resources.model_copy(update=wide)) == (1, "machine")


def test_a_stage_that_fails_and_is_started_again_has_both_attempts(resources):
    with pytest.raises(ValueError, match="no"):
        run("train", resources, fails=True)
    run("train", resources)
    assert [(one.completed, one.continues) for one in attempts_of("train")] == [(False, False), (True, True)]


def test_an_attempt_that_ran_out_of_memory_belongs_to_the_one_with_smaller_micro_batches(resources, tmp_path):
    params = "{seed: 0, train: {steps: 3, micro_batch_size: %d}, data: data}"
    (tmp_path / "params.yaml").write_text(params % 8)
    with pytest.raises(ValueError, match="no"):
        run("train", resources, fails=True)
    (tmp_path / "params.yaml").write_text(params % 4)
    run("train", resources)
    failed, resumed = attempts_of("train")
    assert resumed.continues
    assert failed.experiment == resumed.experiment


def test_a_stage_that_runs_again_after_a_success_begins_anew(resources):
    run("train", resources)
    run("train", resources)
    assert [one.continues for one in attempts_of("train")] == [False, False]


def test_a_success_that_dvc_did_not_record_belongs_to_the_attempt_after_it(resources, tmp_path):
    """A kill of DVC between the stage's end and dvc.lock: the stage is run again, resumes, and ends at once."""
    with timed("train", resources), resume.resumable("train"):
        pass
    run("train", resources)
    assert [one.continues for one in attempts_of("train")] == [False, True]
    settings = {"path": "weights", "size": 3 * 2**20, "md5": "0"}
    lock = {
        "stages": {
            "train": {"deps": [settings], "params": {"params.yaml": {"seed": 0, "train": {"steps": 3}}}}
        }
    }
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    run("train", resources)
    assert [one.continues for one in attempts_of("train")] == [False, True, False]


def test_the_time_of_a_killed_stage_is_kept_until_its_last_note(resources, tmp_path):
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(ROOT / "profiles/tiny.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stage.stdout.readline() == "noted\n"
    # beside a live process an attempt has a result of its own; refused, it is no part of the result after the kill
    run("train", resources)
    with pytest.raises(ValueError, match="no"):
        run("train", resources, fails=True)
    stage.send_signal(signal.SIGKILL)
    stage.communicate()
    alive, own, refused = attempts_of("train")
    assert [one.continues for one in (alive, own, refused)] == [False, False, False]
    assert newest_attempts([alive, refused]) == [alive]
    directory = directory_of("train", key_of("train"))
    (directory / "000002.json").unlink()
    run("train", resources)
    killed, _, resumed = attempts_of("train")
    assert newest_attempts(attempts_of("train")) == [killed, resumed]
    assert killed.seconds > 0
    assert not killed.completed
    assert resumed.continues
    assert not list((tmp_path / "home/timings").rglob(".*.part*.json"))


def test_times_are_found_by_settings_and_inputs(resources, tmp_path):
    run("train", resources)
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 4}, data: data}")
    assert attempts_of("train") == []
    run("train", resources)
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 3}, data: data}")
    assert len(attempts_of("train")) == 1
    assert len(list((tmp_path / "home/timings").glob("train-*"))) == 2


def test_the_usual_time_is_that_of_the_last_complete_result_with_these_settings(resources, tmp_path):
    run("train", resources)
    with pytest.raises(ValueError, match="no"):
        run("train", resources, fails=True)
    assert usual_seconds(["ingest", "train"]) == {}, "it was not completed, or never run"
    run("train", resources)
    last = attempts_of("train")[1:]
    expected = {"train": sum(one.seconds for one in last)}
    assert usual_seconds(["ingest", "train"]) == expected
    (tmp_path / "data/a.txt").write_text("two")  # a new version of the data
    assert usual_seconds(["train"], tmp_path / "home") == expected
    assert usual_seconds(["train"], tmp_path / "other") == {}
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 300}, data: data}")
    assert usual_seconds(["train"]) == {}


def test_the_key_changes_with_a_small_input_and_with_the_size_of_a_large_one(resources, tmp_path):
    before = key_of("ingest"), key_of("train")
    (tmp_path / "data/a.txt").write_text("two")
    (tmp_path / "weights").write_bytes(bytes(3 * 2**20 + 1))
    assert key_of("ingest") != before[0]
    assert key_of("train") != before[1]


def test_a_stage_without_its_input_runs_into_its_own_error_and_has_no_times(resources, tmp_path):
    run("train", resources)
    (tmp_path / "weights").unlink()
    assert attempts_of("train") == []
    with pytest.raises(ValueError, match="no"):
        run("train", resources, fails=True)
    assert len(list((tmp_path / "home/timings").rglob("*.json"))) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"seconds": -1}', '{"price": "much"}', '{"more": 1}'])
def test_a_damaged_record_is_named_and_the_next_attempt_gets_a_number_of_its_own(resources, caplog, damage):
    run("train", resources)
    (record,) = directory_of("train", key_of("train")).iterdir()
    values = json.loads(record.read_text())
    assert Attempt.model_validate(values) == attempts_of("train")[0]
    record.write_text(json.dumps(values | json.loads(damage)) if damage.startswith("{") else damage)
    run("train", resources)
    assert len(attempts_of("train")) == 1
    assert re.search(r"timings/train-\w{12}/000001\.json is damaged \(.*\), so its time is not", caplog.text)


def test_a_directory_that_cannot_be_made_does_not_end_the_stage(resources, tmp_path, caplog):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/timings").write_text("a file")
    run("train", resources)
    assert [one.getMessage() for one in caplog.records if "was not recorded" in one.getMessage()]
    assert attempts_of("train") == []


def test_files_of_others_among_the_records_do_not_end_the_stage(resources, caplog):
    directory = directory_of("train", key_of("train"))
    (directory / "000003.json").mkdir(parents=True)
    (directory / "notes.json").write_text("{}")
    run("train", resources)
    assert [one.completed for one in attempts_of("train")] == [True]
    assert (directory / "000004.json").is_file()
    assert "notes.json is damaged" in caplog.text
    assert "000003.json cannot be read" in caplog.text


def test_two_processes_that_begin_at_once_have_a_record_each(resources, monkeypatch):
    run("train", resources)
    directory = directory_of("train", key_of("train"))
    listed = Path.glob
    # the other process makes its record after this one has looked for a free number
    monkeypatch.setattr(
        Path, "glob", lambda path, pattern: [] if path == directory else listed(path, pattern)
    )
    run("train", resources)
    monkeypatch.undo()
    assert sorted(path.name for path in directory.iterdir()) == ["000001.json", "000002.json"]


def test_a_record_that_cannot_be_written_does_not_end_the_stage(resources, tmp_path, caplog, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srpo_core.runtime.timings.replacing", full)
    run("train", resources)
    assert "the time of this stage was not recorded" in caplog.text
    assert "No space left on device" in caplog.text
