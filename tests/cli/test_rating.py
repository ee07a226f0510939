"""The commands of `srpo rate`, with a task whose images exist."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rating_tasks import make_task
from small_release import publish_small

from srpo_core.cli import main
from srpo_core.cli.rating import resolve_model
from srpo_core.errors import ArtifactError, StoreError
from srpo_core.rating.collected import Answer
from srpo_core.rating.finishing import answers_of_task
from srpo_core.rating.page import page_version
from srpo_core.rating.stored import path_of, read_about, read_ratings, write_ratings
from srpo_core.release.aliases import promote
from srpo_core.storage import open_store


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def srpo(monkeypatch, capsys):
    """Run a command and return its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["srpo", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=end.value.code, out=out, err=err)

    return run


def answers_file(task, path, rater, **changes):
    answers = [
        {"item": item, "answers": {"overall": "tie"}, "seconds": 2.0, "answered_at": "2026-01-31T12:00:00Z"}
        for item in task.items
    ]
    answers[0] |= changes
    content = {"format": 1, "task": task.id, "protocol": "paired", "rater": rater, "page": page_version()}
    path.write_text(json.dumps(content | {"answers": answers}))
    return str(path)


def test_answers_are_imported_counted_finished_and_deleted_on_request(srpo, tmp_path):
    task = make_task(raters=2)
    assert "no tasks" not in srpo("rate", "status").out
    files = [answers_file(task, tmp_path / f"{rater}.json", rater) for rater in ("ada", "bob")]
    found = srpo("rate", "import", files[0])
    assert (found.code, found.out) == (
        0,
        f"task {task.id}: ada: 12 new answers, 0 stored already, 0 refused\n",
    )
    found = srpo("rate", "finish", task.id[:5])
    assert found.code == 2
    assert "1 of 2 planned raters have answered all 12 items" in found.err
    assert not path_of(task.id).exists()
    srpo("rate", "import", files[1])
    status = srpo("rate", "status").out
    assert "rater   ada: 12 of 12 items\nrater   bob: 12 of 12 items" in status
    assert "tie" not in status, "counts, and no results"
    assert srpo("rate", "finish", task.id).code == 0
    about = read_about(path_of(task.id))
    assert (about.items, about.raters, about.complete, about.closed) == (12, 2, 2, "")
    assert list(about.models) == ["tiny-7", "base"], "the model that is judged comes first"
    assert len(read_ratings([path_of(task.id)])) == 24
    assert "finished" in srpo("rate", "status", task.id).out
    assert srpo("rate", "forget", "ada").code == 0
    assert {one.rater for one in read_ratings([path_of(task.id)])} == {"bob"}
    assert answers_of_task(task).counts() == {"bob": 12}
    assert srpo("rate", "forget", "ada").code == 2


def test_a_refused_answer_is_one_line_and_exit_code_2(srpo, tmp_path):
    task = make_task()
    found = srpo("rate", "import", answers_file(task, tmp_path / "ada.json", "ada", seconds=-1))
    assert found.code == 2
    assert found.err.count("\n") == 1
    assert "answer 1: seconds" in found.err
    assert "11 new answers, 0 stored already, 1 refused; set aside in " in found.out
    (kept,) = task.directory.glob("refused/*")
    assert json.loads(kept.read_text())["rule"] == "impossible_time"
    assert srpo("rate", "forget", "ada").code == 0
    assert not kept.exists()


def test_early_needs_a_reason_that_the_file_keeps(srpo, tmp_path):
    task = make_task(raters=3)
    srpo("rate", "import", answers_file(task, tmp_path / "ada.json", "ada"))
    assert srpo("rate", "finish", task.id, "--early", "two raters are ill").code == 0
    about = read_about(path_of(task.id))
    assert (about.closed, about.complete) == ("two raters are ill", 1)


def test_results_are_shown_at_the_end_or_early_with_wider_intervals_for_good(srpo, tmp_path):
    task = make_task(raters=2)
    srpo("rate", "import", answers_file(task, tmp_path / "ada.json", "ada"))
    refused = srpo("rate", "results", task.id)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "1 of 2 planned raters have answered all 12 items" in refused.err
    early = srpo("rate", "results", task.id, "--early").out
    assert "wider because results were seen before the planned end" in early
    assert "tiny-7 beats base: " in early
    srpo("rate", "import", answers_file(task, tmp_path / "bob.json", "bob"))
    assert "is open: end it with 'srpo rate finish" in srpo("rate", "results", task.id).err
    srpo("rate", "finish", task.id)
    shown = srpo("rate", "results", task.id).out
    assert "wider because" in shown
    assert "rater bob: 6 answers, " in shown
    assert shown == srpo("rate", "results", str(path_of(task.id))).out


def test_results_of_a_task_that_nobody_looked_at_have_plain_intervals_also_after_a_rater_left(srpo, tmp_path):
    task = make_task(raters=2)
    for name in ("ada", "bob", "eve"):
        srpo("rate", "import", answers_file(task, tmp_path / f"{name}.json", name))
    printed = srpo("rate", "finish", task.id).out
    assert f"gate    {task.id}:" in printed
    srpo("rate", "forget", "eve")
    srpo("rate", "forget", "bob")
    srpo("rate", "finish", task.id)
    shown = srpo("rate", "results", task.id)
    assert shown.code == 0
    assert "wider" not in shown.out
    assert "too few raters or prompts for an interval" in shown.out


def test_an_impossible_answer_does_not_make_a_task_unreadable(srpo, tmp_path):
    task = make_task(raters=1)
    srpo("rate", "import", answers_file(task, tmp_path / "ada.json", "ada"))
    item = next(iter(task.items))
    answers_of_task(task).add(Answer("bob", item, {"overall": "tie"}, True, 0.0, "p", "2026-01-01T00:00:00Z"))
    early = srpo("rate", "results", task.id, "--early")
    assert (early.code, early.err.count("\n")) == (0, 1)
    found = srpo("rate", "finish", task.id)
    for one in (early, found):
        assert "1 answer set aside: impossible_time 1" in one.err
    assert "12 answers of" in found.out
    assert srpo("rate", "results", task.id).code == 0
    path = path_of(task.id)
    ratings = read_ratings([path])
    write_ratings(path, [*ratings, replace(ratings[0], rater="eve", seconds=1e6)], read_about(path))
    shown = srpo("rate", "results", task.id)
    assert (shown.code, "1 answer set aside" in shown.err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rate", "status", "zz"), "no task begins with 'zz': known are none; 'srpo rate RELEASE' makes one"),
        (("rate", "tiny-7", "--host", "example.org"), "give an IP address of this machine"),
        (("rate", "tiny-7", "--protocol", "stars"), "'stars' is not one of 'paired', 'levels'"),
        (("rate", "tiny-7", "--raters", "1"), "greater than or equal to 2"),
        (("rate", "import", "nothing.json"), "nothing.json"),
    ],
)
def test_a_mistake_is_one_line(srpo, arguments, text):
    found = srpo(*arguments)
    assert found.code != 0
    assert text in found.err
    assert found.err.count("\n") == 1


def test_a_model_is_the_base_a_checkpoint_a_release_or_what_is_in_production(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    store = open_store()
    first, second = (publish_small(store, tmp_path, number) for number in (1, 2))
    promote(store, first, who="ann")
    assert resolve_model("base") == ("base", None)
    for reference, version in (("production", first), (second, second), ("tiny/production", first)):
        name, weights = resolve_model(reference)
        assert name == version
        assert (
            (weights / "config.json")
            .read_bytes()
            .startswith(b"transformer/config.json of " + version.encode())
        )
    checkpoint = tmp_path / "step-000010"
    checkpoint.mkdir()
    (tmp_path / "x").mkdir()
    with pytest.raises(ArtifactError, match="is not a checkpoint: give a directory"):
        resolve_model(str(checkpoint))
    (checkpoint / "config.json").write_text("{}")
    for path in ("./step-000010/", str(checkpoint), "x/../step-000010"):
        assert resolve_model(path) == ("step-000010", Path("step-000010"))
    with pytest.raises(StoreError, match=f"has no release 'tiny-9': known are .*{second}"):
        resolve_model("tiny-9")
