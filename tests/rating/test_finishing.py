"""Nobody sees results before the planned end; then answers become ratings of models."""

from dataclasses import replace

import pytest
from rating_tasks import make_task

from srpo_core.errors import DataError
from srpo_core.rating.answers import Refused
from srpo_core.rating.collected import Answer
from srpo_core.rating.finishing import answers_of_task, complete_raters, finish
from srpo_core.rating.presentation import a_is_left
from srpo_core.rating.records import Rating
from srpo_core.rating.stored import path_of, read_ratings, write_ratings


def rate(task, rater, *, without=0):
    """Answer all items but `without`: the right answer of a check, and else the first model."""
    answers = answers_of_task(task)
    for item in list(task.items.values())[without:]:
        left = a_is_left(0, rater, item.id)
        wanted = item.expected or "first"
        side = "left" if (wanted == "first") == (item.first_is_a == left) else "right"
        answers.add(Answer(rater, item.id, {"overall": side}, left, 1.0, "page", "2026-01-01T00:00:00+00:00"))
    return answers


def test_before_the_planned_end_there_are_no_results_and_after_it_there_are():
    task = make_task(raters=2)
    answers = rate(task, "ada")
    rate(task, "bob", without=1)
    with pytest.raises(DataError, match="1 of 2 planned raters have answered all 12 items"):
        finish(task, answers)
    assert answers.closed() is None, "a refusal does not close the task"
    rate(task, "bob")
    assert complete_raters(task, answers) == ["ada", "bob"]
    ratings = finish(task, answers)
    assert len(ratings) == 2 * len(task.items)
    assert finish(task, answers) == ratings, "it may be repeated"


def test_a_task_that_is_finished_early_is_closed_for_good_and_keeps_every_answer():
    task = make_task(raters=3)
    answers = rate(task, "ada")
    rate(task, "bob", without=5)
    ratings = finish(task, answers, early="eve is ill")
    assert answers.closed() == "eve is ill"
    assert {one.rater for one in ratings} == {"ada", "bob"}
    assert len(ratings) == 2 * len(task.items) - 5
    with pytest.raises(DataError, match="finished"):
        rate(task, "eve")


def test_a_task_without_answers_has_nothing_to_finish():
    with pytest.raises(DataError, match="has no answers"):
        finish(make_task(), answers_of_task(make_task()), early="no time")


def test_ratings_name_models_whatever_side_they_were_on():
    task = make_task(raters=1)
    ratings = finish(task, rate(task, "ada"))
    assert all(isinstance(one, Rating) for one in ratings)
    assert {one.answer for one in ratings if one.kind != "check"} == {"first"}
    assert {one.first_on_left for one in ratings} == {True, False}
    checks = [one for one in ratings if one.kind == "check"]
    assert checks
    assert all(one.answer == one.expected for one in checks)
    repeats = [one for one in ratings if one.kind == "repeat"]
    originals = {one.item: one for one in ratings}
    for one in repeats:
        assert originals[one.repeats].prompt == one.prompt


def test_with_levels_only_the_tested_dimension_of_a_check_has_a_right_answer():
    task = make_task("levels", raters=1)
    answers = answers_of_task(task)
    given = {"text_alignment": "good", "realism": "good", "aesthetics": "good", "overall": "good"}
    for item in task.items:
        answers.add(Answer("ada", item, given, True, 1.0, "page", "2026-01-01T00:00:00+00:00"))
    ratings = finish(task, answers)
    assert len(ratings) == 4 * len(task.items)
    expected = [one for one in ratings if one.expected]
    assert len(expected) == 4
    for one in expected:
        assert one.dimension == task.items[one.item].dimension
        assert one.kind == "check"


IMPOSSIBLE = [
    ("after more than a day", {"seconds": 90_000.0}, "impossible_time"),
    ("before anybody can see", {"seconds": 0.05}, "impossible_time"),
    ("in the future", {"answered_at": "2999-01-01T00:00:00+00:00"}, "impossible_time"),
    ("of another task", {"item": "0" * 12}, "unknown_item"),
]


@pytest.mark.parametrize(
    ("changes", "rule"), [one[1:] for one in IMPOSSIBLE], ids=[one[0] for one in IMPOSSIBLE]
)
def test_one_answer_that_no_reader_takes_is_set_aside_and_all_others_can_be_read(changes, rule):
    task = make_task(raters=1)
    answers = rate(task, "ada", without=1)
    bad = Answer(
        "ada", next(iter(task.items)), {"overall": "tie"}, True, 1.0, "page", "2026-01-01T00:00:00+00:00"
    )
    answers.add(replace(bad, **changes))
    refused = Refused()
    ratings = finish(task, answers, refused=refused)
    assert len(ratings) == len(task.items) - 1
    assert refused.counts == {rule: 1}
    write_ratings(path_of(task.id), ratings)
    assert len(read_ratings([path_of(task.id)])) == len(task.items) - 1


def test_a_task_without_a_valid_answer_stays_open():
    task = make_task(raters=1)
    answers = answers_of_task(task)
    answers.add(
        Answer("ada", next(iter(task.items)), {"overall": "tie"}, True, 0.0, "page", "2026-01-01T00:00:00Z")
    )
    with pytest.raises(DataError, match="has no valid answers: 1 answer set aside: impossible_time 1"):
        finish(task, answers, early="no time")
    assert answers.closed() is None
