"""Versions of the ratings: made, pushed, fetched, and rid of a rater's answers also in older versions."""

import json
import shutil
import time
from pathlib import Path

import pytest
from simulated_people import rating

from flows.ratings import ratings
from srpo_core.errors import ConfigError, DataError, StoreError
from srpo_core.rating.forgetting import forget_rater
from srpo_core.rating.stored import About, list_files, read_ratings, write_ratings
from srpo_core.workspace import data_versions, rating_versions
from srpo_core.workspace.data_view import open_version
from srpo_core.workspace.git import git

pytestmark = pytest.mark.pipeline

ABOUT = About(models={"new": "1", "base": "2"}, items=2, raters=2, complete=2, effect=0.2, power=0.8)


def finish(checkout: Path, task: str, *, bad: bool = False) -> None:
    answers = [rating(task=task, rater=name, item=f"i{n}") for name in ("ada", "bob") for n in range(2)]
    if bad:
        answers.append(rating(task=task, rater="bob", item="i9", seconds=1e7))
    write_ratings(checkout / f"data/ratings/{task}.parquet", answers, ABOUT)


def events(server, name, number, tag=None):
    """Wait until so many events of a name, and of a version if `tag` is given, were sent; Prefect sends them from a thread."""
    until = time.monotonic() + 60
    wanted = {"filter": {"event": {"name": [name]}}}
    if tag is not None:
        wanted["filter"]["resource"] = {"id": [f"ratings.version.{tag}"]}
    while len(found := server.call("/events/filter", wanted)["events"]) < number:
        assert time.monotonic() < until, "the event was not sent"
        time.sleep(0.2)
    return found


def contents(checkout, tag):
    with open_version(checkout, tag) as version:
        found = read_ratings(list_files(version.path))
        return {(one.task, one.rater) for one in found}, len(found)


def test_ratings_are_versioned_pushed_and_a_rater_can_be_forgotten_in_all_versions(standin, prefect):
    finish(standin, "t1", bad=True)
    first = ratings(enough=5)
    assert first.startswith("data/ratings/")
    assert git(standin, "diff", "--name-only", "main", first).split() == [
        "data/.gitignore",
        "data/ratings.dvc",
    ]
    quarantine = [
        json.loads(line)
        for line in (standin / ".srpo/data/ratings-quarantine.jsonl").read_text().splitlines()
    ]
    assert [one["rule"] for one in quarantine] == ["impossible_time"]
    assert data_versions.noted(standin, first)[1] == {
        "impossible_time": {"severity": "critical", "found": 1, "set_aside": 1}
    }
    assert len(events(prefect, "ratings.version.published", 1)) == 1

    # another checkout of the same repository has only a new task: the version has both
    shutil.rmtree(standin / "data/ratings")
    shutil.rmtree(standin / ".dvc/cache")
    finish(standin, "t2")
    second = ratings(enough=5)
    everybody = {(task, name) for task in ("t1", "t2") for name in ("ada", "bob")}
    assert contents(standin, second) == (everybody, 8)
    (enough,) = events(prefect, "ratings.enough", 1, second)  # 4 answers, then 8: the fifth has come
    assert enough["payload"]["tag"] == second
    assert enough["payload"]["new_answers"] == 4

    rating_versions.fetch_newest(standin, standin / "data/ratings")
    forget_rater(standin / "data/ratings", "ada", {})
    third = ratings(enough=5)
    assert contents(standin, third) == ({("t1", "bob"), ("t2", "bob")}, 4)
    note = git(standin, "log", "-1", "--format=%B", third)
    assert '"removed_on_request": {"answers": 4, "raters": 1}' in note
    assert "ada" not in note
    for old in (first, second):
        with pytest.raises(StoreError, match="lacks"), open_version(standin, old):
            pass
    shutil.rmtree(standin / ".git")  # not of ratings; "ada" is in its compressed bytes by chance
    files = [path for path in standin.rglob("*") if path.suffix == ".parquet" or "md5" in path.parts]
    assert len(files) >= 6  # in data/ratings, the cache and the remote
    assert [path for path in files if path.is_file() and b"ada" in path.read_bytes()] == []


def test_a_run_that_dies_before_its_events_does_not_lose_them(standin, prefect, monkeypatch):
    finish(standin, "t3")

    def die(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("flows.ratings.announce", die)
        with pytest.raises(RuntimeError, match="killed"):
            ratings(enough=4)
    tag = ratings(enough=4)
    assert rating_versions.newest_tag(standin) == tag
    assert not (standin / ".srpo/data" / rating_versions.UNANNOUNCED).exists()
    (sent,) = events(prefect, "ratings.enough", 1, tag)
    assert sent["payload"]["new_answers"] == 4


def test_the_old_file_of_another_clone_brings_nobody_back(standin, prefect):
    finish(standin, "t1")
    ratings()
    forget_rater(standin / "data/ratings", "ada", {})
    forgotten = ratings()
    finish(standin, "t1")
    assert ratings() == forgotten


def test_without_a_finished_task_there_is_no_version(standin, prefect):
    with pytest.raises(DataError, match="has no finished task: 'srpo rate finish TASK' writes one"):
        ratings()
    (standin / "data/ratings").mkdir(parents=True)
    (standin / "data/ratings/t1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no table of ratings"):
        ratings()


def test_a_version_of_ratings_is_no_data_set(standin, prefect):
    from srpo_core.cli.data_views import show_version

    finish(standin, "t1")
    with pytest.raises(ConfigError, match="ratings"):
        show_version(ratings(), None)
