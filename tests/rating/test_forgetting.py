"""A rater's answers are deleted on request, counted, and do not come back from another copy of a task."""

import sqlite3

import pytest
from simulated_people import rating

from srpo_core.errors import DataError
from srpo_core.rating.forgetting import REMOVED, Removed, forget_rater, merge_directories, read_removed
from srpo_core.rating.stored import About, list_files, read_about, read_ratings, write_ratings

ABOUT = About(models={"new": "1", "base": "2"}, items=2, raters=2, complete=2, effect=0.2, power=0.8)


def fill(directory, *tasks):
    for task in tasks:
        answers = [rating(task=task, rater=name, item=f"i{n}") for name in ("ada", "bob") for n in range(2)]
        write_ratings(directory / f"{task}.parquet", answers, ABOUT)
    return directory


def raters_in(directory):
    return {one.rater for one in read_ratings(list_files(directory))}


def test_a_raters_answers_are_gone_from_every_task_and_counted_without_a_name(tmp_path):
    fill(tmp_path, "t1", "t2")
    assert forget_rater(tmp_path, "ada", {}) == {"t1": 2, "t2": 2}
    assert raters_in(tmp_path) == {"bob"}
    assert read_removed(tmp_path) == Removed(answers=4, raters=1)
    assert "ada" not in (tmp_path / REMOVED).read_text()
    assert all(b"ada" not in path.read_bytes() for path in tmp_path.iterdir())
    assert read_about(tmp_path / "t1.parquet") == ABOUT  # the task still ended as planned
    assert forget_rater(tmp_path, "bob", {}) == {"t1": 2, "t2": 2}
    assert read_removed(tmp_path) == Removed(answers=8, raters=2)
    assert str(read_removed(tmp_path)) == "8 answers of 2 raters removed on request"
    with pytest.raises(DataError, match="nobody called 'ada' has answered"):
        forget_rater(tmp_path, "ada", {})


def test_answers_of_an_open_task_are_deleted_with_their_bytes(tmp_path):
    path = tmp_path / "answers.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE answers (rater TEXT, item TEXT)")
        connection.executemany(
            "INSERT INTO answers VALUES (?, ?)", [("ada lovelace", f"i{n}") for n in range(50)]
        )
        connection.execute("INSERT INTO answers VALUES ('bob', 'i0')")
    connection.close()
    assert forget_rater(tmp_path / "ratings", "ada lovelace", {"t1": path}) == {"t1": 50}
    assert all(b"lovelace" not in one.read_bytes() for one in tmp_path.glob("answers.sqlite*"))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT rater FROM answers").fetchall() == [("bob",)]
    connection.close()
    path.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    with pytest.raises(DataError, match="cannot be changed"):
        forget_rater(tmp_path / "ratings", "bob", {"t1": path})


@pytest.mark.parametrize("older_forgets", [True, False])
def test_an_old_copy_of_a_task_brings_nobody_back(tmp_path, older_forgets):
    older, newer = fill(tmp_path / "older", "t1", "t2"), fill(tmp_path / "newer", "t1", "t3")
    forget_rater(older if older_forgets else newer, "ada", {})
    merge_directories(older, newer, tmp_path / "both")
    assert [path.stem for path in list_files(tmp_path / "both")] == ["t1", "t2", "t3"]
    assert {one.rater for one in read_ratings([tmp_path / "both/t1.parquet"])} == {"bob"}
    assert read_removed(tmp_path / "both").answers == 4
    # a second merge changes nothing
    merge_directories(tmp_path / "both", newer, tmp_path / "again")
    assert {one.rater for one in read_ratings([tmp_path / "again/t1.parquet"])} == {"bob"}


def test_two_copies_that_forgot_different_raters_have_neither(tmp_path):
    older, newer = fill(tmp_path / "older", "t1"), fill(tmp_path / "newer", "t1")
    for one in (older, newer):
        extra = [rating(task="t2", rater=name, item="i0") for name in ("ada", "bob", "cora")]
        write_ratings(one / "t2.parquet", extra, ABOUT)
    forget_rater(older, "ada", {})
    forget_rater(newer, "bob", {})
    for merged, pair in (("one", (older, newer)), ("other", (newer, older))):
        merge_directories(*pair, tmp_path / merged)
        assert raters_in(tmp_path / merged) == {"cora"}
        assert read_removed(tmp_path / merged) == Removed(answers=6, raters=2)
        assert read_about(tmp_path / merged / "t1.parquet") == ABOUT
        assert all(
            name not in path.read_bytes()
            for path in (tmp_path / merged).iterdir()
            for name in (b"ada", b"bob")
        )
    # with what has everybody's answers still, and once more
    merge_directories(tmp_path / "one", fill(tmp_path / "late", "t1"), tmp_path / "again")
    assert raters_in(tmp_path / "again") == {"cora"}
    assert read_removed(tmp_path / "again") == Removed(answers=6, raters=2)


def test_both_copies_of_a_request_count_once_and_an_answer_that_broke_a_rule_was_not_requested(tmp_path):
    older, newer = fill(tmp_path / "older", "t1"), fill(tmp_path / "newer", "t1")
    for one in (older, newer):
        forget_rater(one, "ada", {})
    left = read_ratings([newer / "t1.parquet"])
    write_ratings(newer / "t1.parquet", [*left, rating(rater="bob", item="i9", seconds=1e7)], ABOUT)
    merge_directories(older, newer, tmp_path / "both")
    assert read_removed(tmp_path / "both") == Removed(answers=2, raters=1)
    assert (tmp_path / "both/t1.parquet").read_bytes() == (older / "t1.parquet").read_bytes()


def test_a_file_that_says_nothing_about_its_task_is_one_line(tmp_path):
    write_ratings(tmp_path / "t.parquet", [rating()])
    with pytest.raises(DataError, match="says nothing about its task"):
        read_about(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="does not exist"):
        read_about(tmp_path / "none.parquet")
