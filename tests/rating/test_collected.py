"""The file of answers: nothing that was confirmed is lost, and writers do not disturb each other."""

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from srpo_core.errors import AnswerError, DataError
from srpo_core.rating.collected import Answer, Answers

ANSWER = Answer("ada", "item-1", {"overall": "left"}, True, 1.5, "page", "2026-01-01T00:00:00+00:00")
WRITER = """
import sys
from pathlib import Path
from srpo_core.rating.collected import Answer, Answers
answers = Answers(Path(sys.argv[1]))
for number in range(100_000):
    answers.add(Answer("ada", f"item-{number}", {"a": "good", "b": "fail"}, True, 1.0, "page", "now"))
    print(number, flush=True)
"""
FIFTY = """
import sys
from pathlib import Path
from srpo_core.rating.collected import Answer, Answers
for number in range(50):
    Answers(Path(sys.argv[1])).add(Answer(sys.argv[2], f"item-{number}", {"overall": "left"}, True, 1.5, "page", "now"))
"""


@pytest.fixture
def answers(tmp_path):
    return Answers(tmp_path / "answers.sqlite")


def test_an_answer_is_read_as_it_was_stored(answers):
    assert answers.all() == []
    assert answers.add(ANSWER)
    levels = replace(ANSWER, item="item-2", answers={"realism": "good", "overall": "fail"}, a_is_left=False)
    assert answers.add(levels)
    assert answers.all() == [ANSWER, levels]
    assert answers.counts() == {"ada": 2}
    assert answers.items_of("ada") == ["item-1", "item-2"]


def test_the_same_answer_again_changes_nothing_and_another_one_is_refused(answers):
    answers.add(ANSWER)
    assert not answers.add(replace(ANSWER, seconds=9.0))
    with pytest.raises(AnswerError, match="item-1: ada has answered it already"):
        answers.add(replace(ANSWER, answers={"overall": "right"}))
    assert answers.all() == [ANSWER]
    assert answers.add(replace(ANSWER, rater="bob", answers={"overall": "right"}))


def test_an_undone_answer_is_gone_and_may_be_given_otherwise(answers):
    answers.add(ANSWER)
    assert answers.undo("ada", "item-1")
    assert not answers.undo("ada", "item-1")
    assert answers.all() == []
    assert answers.add(replace(ANSWER, answers={"overall": "right"}))


def test_a_closed_task_takes_no_answer_and_gives_none_back(answers):
    answers.add(ANSWER)
    assert answers.closed() is None
    answers.close("a rater has left")
    answers.close("another reason")
    assert answers.closed() == "a rater has left"
    with pytest.raises(AnswerError, match="finished"):
        answers.add(replace(ANSWER, item="item-2"))
    with pytest.raises(AnswerError, match="finished"):
        answers.undo("ada", "item-1")
    assert answers.all() == [ANSWER]


def test_processes_and_threads_write_at_once_and_every_answer_is_there(answers):
    raters = ["ada", "bob", "eve"]
    processes = [
        subprocess.Popen([sys.executable, "-c", FIFTY, str(answers.path), rater]) for rater in raters[:2]
    ]
    with ThreadPoolExecutor(4) as threads:
        list(
            threads.map(
                lambda number: answers.add(replace(ANSWER, rater="eve", item=f"item-{number}")), range(50)
            )
        )
    for process in processes:
        assert process.wait(120) == 0
    assert answers.counts() == dict.fromkeys(raters, 50)


def test_a_killed_writer_loses_no_answer_that_it_has_confirmed(answers):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(answers.path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        for line in writer.stdout:
            if int(line) == 40:
                os.kill(writer.pid, signal.SIGKILL)
                break
        confirmed = 1 + max([40, *(int(rest) for rest in writer.stdout.read().split())])
    stored = answers.all()
    assert [one.item for one in stored][:confirmed] == [f"item-{number}" for number in range(confirmed)]
    assert len(stored) <= confirmed + 1, "one more may be stored and not confirmed"
    assert all(one.answers == {"a": "good", "b": "fail"} for one in stored), "no answer is stored in part"


def test_the_file_waits_for_the_disk_before_an_answer_is_confirmed(answers):
    """A power failure cannot be caused here; WAL with synchronous=FULL (2) is SQLite's documented way through one."""
    with answers._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_damaged_file_is_one_line(answers):
    answers.path.write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="cannot be read or written") as error:
        answers.counts()
    assert isinstance(error.value.__cause__, sqlite3.DatabaseError)
    assert "\n" not in str(error.value)
