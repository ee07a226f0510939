"""`srpo clean` removes what is old, and nothing that a process, a release or a commit needs."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from standin import git, keep_stages, make_standin

from srpo_core.artifacts import write_json
from srpo_core.config import write_settings
from srpo_core.errors import StoreError
from srpo_core.runtime import file_lock
from srpo_core.runtime.resume import ELSEWHERE
from srpo_core.storage import DirectoryStore
from srpo_core.workspace import retention
from srpo_core.workspace.recording import recorded
from srpo_core.workspace.reproduce import reproduce
from srpo_core.workspace.run_record import RunRecord, read_records, write_record
from srpo_core.workspace.worktree import open_workspace

OLD = datetime(2025, 1, 1, tzinfo=UTC).timestamp()  # before every run
HOLD = "import sys, time; from pathlib import Path; from srpo_core.runtime import file_lock\n" + (
    "held = file_lock.acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(300)\n"
)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with one quick stage, as the current directory, and a temporary directory of its own for Ray."""
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("srpo_core.runtime.ray_sessions.SYSTEM_TMPDIR", str(tmp_path / "tmp"))
    path = make_standin(tmp_path / "checkout")
    keep_stages(path, "ingest")
    monkeypatch.chdir(path)
    return path


@contextmanager
def held_elsewhere(lock):
    """Hold a lock in another process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


@dataclass(frozen=True)
class Run:
    run_id: str
    path: Path


def run(checkout) -> Run:
    """Leave what an old run leaves: a record, a ref, and the directory of a workspace."""
    home = checkout / ".srpo"
    number = len(list((home / "runs").glob("2*")))
    started = datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC)
    run_id = f"{started:%Y%m%d-%H%M%S-%f}"
    git(checkout, "update-ref", f"refs/srpo/runs/{run_id}", "HEAD")
    write_record(
        home,
        RunRecord(
            run_id=run_id,
            state="completed",
            started=started,
            commit="c" * 40,
            changed=False,
            ref=f"refs/srpo/runs/{run_id}",
        ),
    )
    path = home / "runs" / run_id / "workspace"
    path.mkdir(parents=True)
    (path / "params.yaml").write_text("seed: 1\n")
    (path.parent / "lock").touch()
    return Run(run_id, path)


def real_run(checkout, stages=(), **patch):
    with open_workspace(checkout, keep=10) as workspace, recorded(workspace, profile="tiny") as record:
        write_settings(workspace.path, profile="tiny", patch=patch)
        record.note_settings()
        for stage in stages:
            reproduce(workspace, stage, lambda _: None)
    return workspace


def opened(checkout, days=-1.0):
    """Look at a checkout; with negative days everything is old enough."""
    return retention.open_retention(
        checkout, checkout / ".srpo", before=datetime.now(UTC) - timedelta(days=days)
    )


def no_store():
    raise AssertionError("the store is read only if an old run has published")


def expired_names(checkout, **options):
    return [one.name for one in retention.expired_runs(opened(checkout, **options), no_store)]


def made(path, content="x", when=OLD):
    """Write a file with an old time of its own and of its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    for one in (path, path.parent):
        os.utime(one, (when, when))
    return path


def test_old_runs_go_with_workspace_record_and_ref_and_the_newest_stays(checkout):
    first, second = real_run(checkout), real_run(checkout)
    size = sum(
        path.lstat().st_size for path in first.path.parent.rglob("*") if path.is_file() or path.is_symlink()
    )
    (one,) = retention.expired_runs(opened(checkout), no_store)
    assert (one.what, one.name, one.num_bytes) == ("run", first.run_id, size)
    assert first.path.is_dir(), "listing removes nothing"
    assert one.remove()
    assert not first.path.parent.exists()
    assert [record.run_id for record in read_records(checkout / ".srpo")] == [second.run_id]
    assert (
        git(checkout, "for-each-ref", "--format=%(refname)", "refs/srpo") == f"refs/srpo/runs/{second.run_id}"
    )
    assert git(checkout, "worktree", "list", "--porcelain").count("worktree ") == 2
    assert expired_names(checkout) == []


def test_runs_of_the_last_days_stay(checkout):
    real_run(checkout)
    real_run(checkout)
    assert expired_names(checkout, days=1) == []
    assert len(expired_names(checkout)) == 1


class Versions:
    uri = "/store"

    def versions(self):
        return ["tiny-here"]


def test_a_run_stays_as_long_as_its_release_is_in_the_store_or_in_another_one(checkout):
    names = {}
    for release in (
        "/store/models/tiny/versions/tiny-here",
        "/store/models/tiny/versions/tiny-gone",
        "s3://b/tiny-x",
    ):
        names[release] = run(checkout).run_id
    run(checkout)
    for record, release in zip(reversed(read_records(checkout / ".srpo")), names, strict=False):
        write_record(checkout / ".srpo", record.changed_to(release=release))
    expired = retention.expired_runs(opened(checkout), Versions)
    assert [one.name for one in expired] == [names["/store/models/tiny/versions/tiny-gone"]]


def test_the_report_of_a_run_in_this_store_goes_with_it_and_before_its_record(checkout, tmp_path):
    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "report.html").write_text("page")
    first, second, newest = (run(checkout).run_id for _ in range(3))
    for run_id in (first, second, newest):
        store.reports.keep(run_id, {"report.html": tmp_path / "report.html"})
    uris = {first: store.uri, second: "s3://another/store", newest: store.uri}
    for record in read_records(checkout / ".srpo"):
        write_record(checkout / ".srpo", record.changed_to(report_store=uris[record.run_id]))

    class Unreachable:
        uri = store.uri

        @property
        def reports(self):
            return self

        def remove(self, run_id):
            raise StoreError(f"the store does not answer: {run_id}")

    for one in retention.expired_runs(opened(checkout), Unreachable):
        if one.name == first:
            with pytest.raises(StoreError, match="does not answer"):
                one.remove()
    assert len(read_records(checkout / ".srpo")) == 3, "the run is still there to be removed"
    assert all(one.remove() for one in retention.expired_runs(opened(checkout), lambda: store))
    assert [record.run_id for record in read_records(checkout / ".srpo")] == [newest]
    assert sorted(path.name for path in (tmp_path / "store/reports").iterdir()) == sorted([second, newest])


def test_a_run_whose_process_lives_stays_and_so_do_the_caches(checkout):
    old, _ = run(checkout), run(checkout)
    image = made(checkout / ".srpo/images/a.images")
    with held_elsewhere(checkout / f".srpo/runs/{old.run_id}/lock"):
        found = opened(checkout)
        assert list(retention.expired_runs(found, no_store)) == []
        assert list(retention.expired_state(found)) == []
        assert retention.expired_objects(found) == (None, f"run {old.run_id} is using it")
    (one,) = retention.expired_runs(opened(checkout), no_store)
    with held_elsewhere(checkout / f".srpo/runs/{old.run_id}/lock"):
        assert not one.remove(), "it was started between listing and removing"
    assert old.path.is_dir()
    assert [one.name for one in retention.expired_state(opened(checkout))] == ["images/a.images"]
    assert image.exists()


@pytest.mark.parametrize("step", ["remove_ref", "remove_run", "record_file"])
def test_a_removal_that_was_killed_is_completed_by_repeating_it(checkout, monkeypatch, step):
    old, _ = run(checkout), run(checkout)
    real = getattr(retention, step)

    def killed(*arguments):
        if step != "record_file":
            real(*arguments)
        raise KeyboardInterrupt

    (one,) = retention.expired_runs(opened(checkout), no_store)
    with monkeypatch.context() as patch:
        patch.setattr(retention, step, killed)
        with pytest.raises(KeyboardInterrupt):
            one.remove()
    (again,) = retention.expired_runs(opened(checkout), no_store)
    assert again.remove()
    assert expired_names(checkout) == []
    assert not old.path.parent.exists()
    assert git(checkout, "for-each-ref", f"refs/srpo/runs/{old.run_id}") == ""


def test_an_old_workspace_without_a_record_goes_but_not_one_whose_record_is_damaged(checkout):
    plain, damaged, _ = run(checkout), run(checkout), run(checkout)
    (checkout / f".srpo/history/{plain.run_id}.json").unlink()
    (checkout / f".srpo/history/{damaged.run_id}.json").write_text("{")
    (checkout / ".srpo/runs/notes").mkdir()
    assert expired_names(checkout) == [plain.run_id]


def test_links_are_not_followed(checkout, tmp_path):
    outside = made(tmp_path / "outside/precious.txt", "x" * 1000)
    old, _ = run(checkout), run(checkout)
    (old.path / "link").symlink_to(outside.parent)
    (checkout / ".srpo/runs/20200101-000000-000000").symlink_to(outside.parent)
    for name in ("resume", "tensorboard"):
        (checkout / ".srpo" / name).mkdir()
        link = checkout / ".srpo" / name / "train-0123"
        link.symlink_to(outside.parent)
        os.utime(link, (OLD, OLD), follow_symlinks=False)
    (checkout / ".srpo/images").symlink_to(outside.parent)
    found = opened(checkout)
    expired = [*retention.expired_runs(found, no_store), *retention.expired_state(found)]
    assert [one.name for one in expired] == [old.run_id, "tensorboard/train-0123"]
    assert all(one.remove() for one in expired)
    assert expired[1].num_bytes < 1000
    assert outside.read_text() == "x" * 1000
    assert not (checkout / ".srpo/tensorboard/train-0123").is_symlink()


def test_old_resume_state_goes_with_what_it_has_elsewhere_unless_a_process_holds_it(checkout, tmp_path):
    run(checkout)
    resume = checkout / ".srpo/resume"
    elsewhere = made(tmp_path / "shared/state/step")
    for name in ("train-held", "train-old", ".train-left.done"):
        made(resume / name / "state.json")
    write_json(resume / "train-old" / ELSEWHERE, [str(elsewhere.parent)])
    os.utime(resume / "train-old" / ELSEWHERE, (OLD, OLD))
    os.utime(resume / "train-old", (OLD, OLD))
    made(resume / "train-new/state.json", when=time.time())
    with held_elsewhere(resume / "train-held.lock"):
        expired = list(retention.expired_state(opened(checkout)))
        assert [one.name for one in expired] == [".train-left.done", "train-old"]
        assert [one.remove() for one in expired] == [True, True]
        assert sorted(path.name for path in resume.iterdir() if path.is_dir()) == ["train-held", "train-new"]
    assert not elsewhere.exists()
    (held,) = retention.expired_state(opened(checkout))
    with held_elsewhere(resume / "train-held.lock"):
        assert not held.remove()
    assert (resume / "train-held/state.json").exists()


def test_caches_that_were_used_since_the_newest_run_began_stay(checkout):
    made(checkout / ".srpo/images/old.images", "x" * 10)
    made(checkout / ".srpo/base_images/0123/3-1.safetensors")
    run(checkout)
    made(checkout / ".srpo/images/new.images", when=time.time())
    read = made(checkout / ".srpo/images/read.images")
    os.utime(read, (time.time(), OLD))
    expired = list(retention.expired_state(opened(checkout)))
    assert [(one.name, one.num_bytes) for one in expired] == [
        ("images/old.images", 10),
        ("base_images/0123", 1),
    ]
    assert all(one.remove() for one in expired)
    assert sorted(path.name for path in (checkout / ".srpo/images").iterdir()) == [
        "new.images",
        "read.images",
    ]


def test_ray_sessions_of_this_project_go_once_no_process_uses_them(checkout, tmp_path):
    run(checkout)
    sessions = {}
    for number, name in enumerate(("ours", "locked", "named", "foreign")):
        directory = tmp_path / f"tmp/ray/session_2026-01-0{number + 1}_00-00-00_000000_{number}"
        mark = directory / ("srpo.lock" if name != "foreign" else "other")
        sessions[name] = made(mark).parent
    link = tmp_path / "tmp/ray/session_2026-01-05_00-00-00_000000_5"
    link.symlink_to(sessions["ours"])
    wait = [sys.executable, "-c", "print(flush=True); input()", f"--session={sessions['named'].name}"]
    with (
        held_elsewhere(sessions["locked"] / "srpo.lock"),
        subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout.readline() == b"\n"
        (one,) = retention.expired_state(opened(checkout))
        assert (one.what, one.name) == ("Ray session", str(sessions["ours"]))
        held = file_lock.acquire(sessions["ours"] / "srpo.lock")
        assert not one.remove()
        held.release()
        assert one.remove()
        child.kill()
    assert [name for name, path in sessions.items() if path.exists()] == ["locked", "named", "foreign"]


def test_the_cache_loses_what_only_removed_runs_needed_and_the_other_runs_come_back(checkout):
    old = real_run(checkout, ("ingest",), seed=1)
    kept = real_run(checkout, ("ingest",), seed=2)
    runs = list(retention.expired_runs(opened(checkout), no_store))
    planned, _ = retention.expired_objects(opened(checkout), runs)
    assert planned.name.startswith("2 objects of "), "a directory and its file"
    assert retention.expired_objects(opened(checkout)) == (None, "")
    assert [one.remove() for one in runs] == [True]
    found, _ = retention.expired_objects(opened(checkout))
    assert (found.name, found.num_bytes) == (planned.name, planned.num_bytes)
    with open_workspace(checkout):
        assert not found.remove(), "a run has started meanwhile"
    assert retention.expired_objects(opened(checkout, days=1)) == (None, ""), "they are young"
    stages = checkout / ".dvc/tmp/rwlock"  # as DVC notes the process that runs a stage
    stages.write_text(
        json.dumps({"write": {"runs/ingest": {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}})
    )
    assert not found.remove()
    assert f"(process {os.getpid()})" in retention.expired_objects(opened(checkout))[1]
    stages.write_text(
        json.dumps({"write": {"runs/ingest": {"pid": 2**22 + 1, "cmd": "dvc repro"}}, "read": {}})
    )
    assert found.remove()
    assert retention.expired_objects(opened(checkout)) == (None, "")
    git(checkout, "checkout", "--quiet", f"refs/srpo/runs/{kept.run_id}")
    repro = subprocess.run(["dvc", "repro"], cwd=checkout, capture_output=True, text=True, check=True)
    assert "Running stage" not in repro.stdout
    assert not old.path.exists()


def test_a_cache_outside_the_checkout_is_left_alone(checkout, tmp_path):
    real_run(checkout, ("ingest",), seed=1)
    (checkout / ".dvc/config.local").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    run(checkout)
    assert retention.expired_objects(opened(checkout)) == (
        None,
        "it is outside the checkout and may be shared",
    )
