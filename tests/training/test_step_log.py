import json
import logging
import time

from srpo_core.runtime.live_loggers import LiveLoggers
from srpo_core.runtime.shared_files import Location
from srpo_core.training import step_log


def test_progress_is_logged_line_by_line_without_old_lines(tmp_path, caplog):
    path = tmp_path / "progress.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    with (
        caplog.at_level(logging.INFO),
        step_log.log_steps(Location.of(path), 3, LiveLoggers({})),
        path.open("a") as file,
    ):
        file.write(json.dumps({"step": 2, "loss": 0.25}) + "\n")
    assert [record.getMessage() for record in caplog.records] == ["step 2 of 3  loss 0.2500"]


def test_the_step_is_reported_from_the_one_at_which_training_resumes(tmp_path, reports):
    path = tmp_path / "progress.jsonl"
    path.write_text(json.dumps({"step": 10}) + "\n" + json.dumps({"note": "4 workers"}) + "\n")
    with step_log.log_steps(Location.of(path), 30, LiveLoggers({})), path.open("a") as file:
        for step in (11, 12, 11):  # back to a checkpoint
            file.write(json.dumps({"step": step}) + "\n")
    assert reports == [("step", 10, 30), ("step", 11, 30), ("step", 12, 30), ("step", 11, 30)]


def test_a_note_of_a_worker_is_logged_as_a_warning_and_is_no_step(tmp_path, caplog):
    path = tmp_path / "progress.jsonl"
    with caplog.at_level(logging.INFO), step_log.log_steps(Location.of(path), 3, LiveLoggers({})):
        path.write_text(
            json.dumps({"note": "6 workers"}) + "\n" + json.dumps({"step": 1, "loss": 0.5}) + "\n"
        )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "6 workers"),
        ("INFO", "step 1 of 3  loss 0.5000"),
    ]


def test_a_partly_written_line_is_logged_when_it_is_complete(tmp_path, caplog):
    path = tmp_path / "progress.jsonl"
    with (
        caplog.at_level(logging.INFO),
        step_log.log_steps(Location.of(path), 3, LiveLoggers({})),
        path.open("a") as file,
    ):
        file.write('{"step": 1, ')
        file.flush()
        time.sleep(2 * step_log.POLL_SECONDS)
        file.write('"loss": 0.5}\n')
    assert [record.getMessage() for record in caplog.records] == ["step 1 of 3  loss 0.5000"]


def test_a_small_learning_rate_is_not_logged_as_zero(tmp_path, caplog):
    path = tmp_path / "progress.jsonl"
    with caplog.at_level(logging.INFO), step_log.log_steps(Location.of(path), 3, LiveLoggers({})):
        path.write_text(json.dumps({"step": 1, "loss": 0.0, "learning_rate": 2e-5}) + "\n")
    assert [record.getMessage() for record in caplog.records] == [
        "step 1 of 3  loss 0.0000  learning_rate 2.00e-05"
    ]
