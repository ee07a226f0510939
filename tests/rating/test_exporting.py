"""A file of answers comes from a rater: each value is checked, and each fault is one line."""

import json
import re

import pytest
from rating_tasks import QUALITY, make_task

from srpo_core.errors import AnswerError, DataError
from srpo_core.rating.exporting import export_page, forget_refused, import_answers, refused_path
from srpo_core.rating.finishing import answers_of_task, finish
from srpo_core.rating.page import page_version
from srpo_core.rating.presentation import a_is_left


@pytest.fixture
def task():
    return make_task()


def content_of(task, /, **changes):
    """What the page of an exported task saves when a rater has always chosen the left image."""
    answers = [
        {
            "item": item,
            "answers": {"overall": "left"},
            "seconds": 2.5,
            "answered_at": "2026-01-31T12:00:00.123Z",
        }
        for item in task.items
    ]
    return {
        "format": 1,
        "task": task.id,
        "protocol": task.protocol,
        "rater": "ada",
        "page": page_version(),
        "answers": answers,
        **changes,
    }


@pytest.fixture
def save(tmp_path):
    def save(content):
        path = tmp_path / "answers.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return save


def test_the_file_has_images_and_prompts_and_neither_models_nor_kinds(task):
    html = export_page(task)
    script = html.partition('type="application/json" id="task">')[2].partition("</script>")[0]
    described = json.loads(script)
    assert {one["item"] for one in described["items"]} == set(task.items)
    assert {tuple(sorted(one)) for one in described["items"]} == {("images", "item", "phase", "prompt")}
    without_images = re.sub(r"data:image/webp;base64,[\w+/=]+", "", script)
    for word in [*QUALITY, "noise", "check", "repeat", "first", "second", *task.shown_images]:
        assert word not in without_images
    assert "://" not in html


def test_a_prompt_cannot_end_the_script_of_the_file(task):
    from dataclasses import replace

    item = next(iter(task.items.values()))
    hostile = item.model_copy(update={"prompt": "</script><script>alert(1)</script>"})
    html = export_page(replace(task, items={item.id: hostile}))
    assert html.count("</script>") == 2
    assert "<script>alert" not in html


def test_answers_are_taken_once_however_often_the_file_is_imported(task, save):
    path = save(content_of(task))
    found = import_answers(path)
    assert (found.new, found.stored_already, found.faults) == (len(task.items), 0, [])
    again = import_answers(path)
    assert (again.new, again.stored_already, again.faults) == (0, len(task.items), [])
    stored = answers_of_task(task).all()
    assert {one.item: one.a_is_left for one in stored} == {
        item: a_is_left(0, "ada", item) for item in task.items
    }
    assert {one.answered_at for one in stored} == {"2026-01-31T12:00:00.123+00:00"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"item": "0" * 12}, "is not in this task"),
        ({"answers": {"overall": "first"}}, "allowed are left, right"),
        ({"answers": {"overall": 1}}, "valid string"),
        ({"answers": {}}, "answers are needed"),
        ({"seconds": -0.1}, "greater than or equal"),
        ({"seconds": 0.05}, "greater than or equal"),
        ({"seconds": 1e300}, "less than or equal"),
        ({"seconds": None}, "valid number"),
        ({"answered_at": "yesterday"}, "must be a time"),
        ({"answered_at": "2026-13-40T12:00:00Z"}, "must be a time"),
        ({"answered_at": "2026-01-31T12:00:00+05:00"}, "must be a time"),
        ({"answered_at": "2999-01-31T12:00:00Z"}, "in the future"),
        ({"weight": 100}, "Extra inputs"),
    ],
)
def test_a_bad_answer_is_one_line_and_the_others_are_taken(task, save, changes, text):
    content = content_of(task)
    content["answers"][2] |= changes
    path = save(content)
    found = import_answers(path)
    (line,) = found.faults
    assert line.startswith(f"{path}: answer 3: ")
    assert text in line
    assert "\n" not in line
    assert (found.new, found.stored_already) == (len(task.items) - 1, 0)


@pytest.mark.parametrize("wrong", [None, 1, "text", [], {}])
def test_an_answer_of_another_form_is_one_line(task, save, wrong):
    content = content_of(task)
    content["answers"][0] = wrong
    found = import_answers(save(content))
    assert len(found.faults) == 1
    assert found.new == len(task.items) - 1


def test_refused_answers_are_kept_with_their_rule_once_and_are_deleted_on_request(task, save):
    content = content_of(task)
    changes = [
        {"item": "0" * 12},
        {"answers": {"overall": "first"}},
        {"seconds": 0.0},
        {"answered_at": "2999-01-31T12:00:00Z"},
    ]
    for one, change in zip(content["answers"], changes, strict=False):
        one.update(change)
    content["answers"].append(content["answers"][5])
    for _ in range(2):
        found = import_answers(save(content))
        assert found.set_aside == refused_path(task.directory, "ada")
        entries = [json.loads(line) for line in found.set_aside.read_text().splitlines()]
        assert [(one["record"], one["rule"]) for one in entries] == [
            (1, "unknown_item"),
            (2, "bad_value"),
            (3, "impossible_time"),
            (4, "impossible_time"),
            (len(task.items) + 1, "doubled_answer"),
        ]
    forget_refused(task.directory, "../ada")
    assert found.set_aside.exists()
    forget_refused(task.directory, "ada")
    assert not found.set_aside.exists()
    assert import_answers(save(content_of(task, rater="bob"))).set_aside is None


def test_an_answer_after_more_than_a_day_counts_as_one_after_a_day(task, save):
    content = content_of(task)
    content["answers"][0]["seconds"] = 200_000.0
    assert import_answers(save(content)).faults == []
    assert sorted({one.seconds for one in answers_of_task(task).all()}) == [2.5, 86_400.0]


def test_a_doubled_answer_counts_once(task, save):
    content = content_of(task)
    content["answers"].append({**content["answers"][0], "answers": {"overall": "right"}})
    found = import_answers(save(content))
    assert found.new == len(task.items)
    assert found.faults[0].endswith("is answered twice in this file; the first answer counts")
    assert {tuple(one.answers.items()) for one in answers_of_task(task).all()} == {(("overall", "left"),)}


def test_another_file_cannot_change_what_a_rater_has_answered(task, save):
    import_answers(save(content_of(task)))
    content = content_of(task)
    for one in content["answers"]:
        one["answers"] = {"overall": "right"}
    found = import_answers(save(content))
    assert found.new == found.stored_already == 0
    assert len(found.faults) == len(task.items)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"task": "0" * 12}, "no task begins with '000000000000'"),
        ({"task": ""}, "is no file of answers \\(task"),
        ({"task": "../../etc"}, "is no file of answers \\(task"),
        ({"protocol": "levels"}, "protocol is levels, and that of task"),
        ({"rater": "a/b"}, "is no file of answers \\(rater"),
        ({"format": 2}, "is no file of answers \\(format"),
        ({"answers": {}}, "is no file of answers \\(answers"),
        ({"page": "x"}, "is no file of answers \\(page"),
        ({"more": 1}, "is no file of answers \\(more"),
    ],
)
def test_a_file_that_is_not_of_this_task_is_refused_as_a_whole(task, save, changes, text):
    with pytest.raises(DataError, match=text):
        import_answers(save(content_of(task, **changes)))
    assert answers_of_task(task).all() == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '"text"', "[" * 100_000])
def test_a_file_that_is_no_json_is_one_line(task, save, content):
    with pytest.raises(DataError, match="is no file of answers") as error:
        import_answers(save(content))
    assert "\n" not in str(error.value)


def test_a_finished_task_takes_no_file(task, save):
    import_answers(save(content_of(task)))
    finish(task, answers_of_task(task), early="enough")
    found = import_answers(save(content_of(task, rater="bob")))
    assert found.new == 0
    assert all("finished" in line for line in found.faults)
    with pytest.raises(AnswerError):
        answers_of_task(task).undo("ada", next(iter(task.items)))
