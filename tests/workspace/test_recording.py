"""Every run leaves a record and a commit, from which its results come back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin import git, keep_stages, make_standin

from srpo_core.config import write_settings
from srpo_core.errors import ConfigError, StageError
from srpo_core.workspace import recording
from srpo_core.workspace.recording import recorded
from srpo_core.workspace.reproduce import reproduce
from srpo_core.workspace.run_record import find_record, is_live, read_records, record_file
from srpo_core.workspace.worktree import open_workspace

STAGES = ("ingest", "train", "gate")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository whose stages take no time, as the current directory."""
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    path = make_standin(tmp_path / "checkout")
    keep_stages(path, *STAGES)
    monkeypatch.chdir(path)
    return path


def run(checkout, stages=STAGES, profile="tiny", **patch):
    """Run stages as the flow does, and return the run's workspace."""
    with open_workspace(checkout) as workspace, recorded(workspace, profile=profile) as record:
        write_settings(workspace.path, profile=profile, patch=patch)
        record.note_settings()
        for stage in stages:
            reproduce(workspace, stage, lambda _: None)
    return workspace


def records(checkout):
    return read_records(checkout / ".srpo")


def dvc(checkout, *words):
    done = subprocess.run(["dvc", *words], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout


def committed(checkout, name):
    """Return the content of a file in the newest run's commit, or None."""
    ref = records(checkout)[0].ref
    done = subprocess.run(
        ["git", "show", f"{ref}:{name}"], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def test_a_past_run_is_up_to_date_after_git_checkout_of_its_ref_and_dvc_repro(checkout):
    keep_stages(checkout, "ingest")  # each takes a second
    for seed in (1, 2):
        run(checkout, stages=("ingest",), seed=seed)
    newest, oldest = records(checkout)
    assert [newest.settings["seed"], oldest.settings["seed"]] == [2, 1]
    git(checkout, "checkout", "--quiet", oldest.ref)
    assert "Running stage" not in dvc(checkout, "repro"), "DVC restores the results"
    assert json.loads((checkout / "runs/ingest/numbers.json").read_text())[0] == 1
    assert git(checkout, "status", "--porcelain") == ""
    dvc(checkout, "install")  # its hook restores them at once
    git(checkout, "checkout", "--quiet", newest.ref)
    assert json.loads((checkout / "runs/ingest/numbers.json").read_text())[0] == 2
    assert dvc(checkout, "repro").splitlines()[-1] == "Data and pipelines are up to date."


def test_a_record_has_settings_data_verdict_and_code(checkout):
    keep_stages(checkout, "ingest", "gate")
    (checkout / "steps.py").write_text((checkout / "steps.py").read_text() + "# edited\n")
    run(checkout, stages=("ingest", "gate"), seed=3, gate={"resamples": 2000})
    (record,) = records(checkout)
    assert (record.state, record.verdict, record.reason) == ("completed", "refused", "as the resamples say.")
    assert record.settings["seed"] == 3
    assert record.changed
    assert record.commit == git(checkout, "rev-parse", "HEAD")
    assert record.data.source == "assets/tiny/hpd"
    lock = committed(checkout, "dvc.lock")
    assert f"md5: {record.data.md5}" in lock
    assert committed(checkout, "steps.py").endswith("# edited\n")
    assert record.started < record.ended


def test_a_commit_has_untracked_files_only_if_a_stage_reads_them(checkout):
    (checkout / "notes.txt").write_text("private")
    (checkout / "assets/tiny/hpd/more.json").write_text("[]")
    (checkout / "staged.txt").write_text("staged")
    git(checkout, "add", "staged.txt")
    workspace = run(checkout, stages=())
    assert (workspace.path / "notes.txt").read_text() == "private"
    assert committed(checkout, "notes.txt") is None
    assert committed(checkout, "assets/tiny/hpd/more.json") == "[]"
    assert committed(checkout, "staged.txt") == "staged"
    assert (
        git(checkout, "status", "--porcelain") == "A  staged.txt\n?? assets/tiny/hpd/more.json\n?? notes.txt"
    )


def test_an_uncommitted_secret_is_in_no_tag_and_is_not_pushed(checkout, tmp_path):
    (checkout / "params.yaml").write_text((checkout / "params.yaml").read_text() + "# token: hf_secret\n")
    workspace = run(checkout, stages=(), profile=None)
    ref = f"refs/srpo/runs/{workspace.run_id}"
    assert [record.ref for record in records(checkout)] == [ref]
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "again"), ref)
    assert git(tmp_path / "again", "rev-parse", "HEAD") == git(checkout, "rev-parse", ref)
    git(tmp_path, "init", "--quiet", "--bare", "public")
    git(checkout, "push", "--quiet", "--tags", str(tmp_path / "public"), "HEAD:refs/heads/main")
    assert git(checkout, "tag") == ""
    assert git(tmp_path / "public", "for-each-ref", "--format=%(refname)") == "refs/heads/main"


def test_a_failed_run_is_recorded_with_its_error_and_its_commit_has_what_was_done(checkout):
    with pytest.raises(StageError):
        run(checkout, train={"batch_size": 665})
    (record,) = records(checkout)
    assert (record.state, record.verdict) == ("failed", None)
    assert record.reason == "stage train: the loss is NaN at step 7"
    assert "runs/ingest" in committed(checkout, "dvc.lock")


def test_a_run_with_wrong_settings_is_recorded_without_settings_and_ref(checkout):
    with pytest.raises(ConfigError):
        run(checkout, sead=1)
    (record,) = records(checkout)
    assert (record.state, record.settings, record.ref) == ("failed", None, None)
    assert "sead" in record.reason


def test_an_interrupted_run_is_cancelled(checkout):
    with (
        pytest.raises(KeyboardInterrupt),
        open_workspace(checkout) as workspace,
        recorded(workspace, profile=None),
    ):
        raise KeyboardInterrupt
    assert [record.state for record in records(checkout)] == ["cancelled"]


def test_a_killed_run_is_killed_and_the_next_run_commits_what_it_had_done(checkout, monkeypatch):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from srpo_core.config import write_settings\n"
        "from srpo_core.workspace.recording import recorded\n"
        "from srpo_core.workspace.worktree import open_workspace\n"
        "with open_workspace(Path.cwd()) as workspace, recorded(workspace, profile='tiny') as record:\n"
        "    write_settings(workspace.path, profile='tiny', patch={'seed': 9})\n"
        "    record.note_settings()\n"
        "    print('ready', flush=True); time.sleep(300)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=checkout, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        (record,) = records(checkout)
        assert record.state == "running"
        assert is_live(checkout / ".srpo", record.run_id)
        os.kill(child.pid, signal.SIGKILL)
    (record,) = records(checkout)
    assert (record.state, record.ref) == ("killed", None)
    run(checkout, stages=())
    _, dead = records(checkout)
    assert (dead.run_id, dead.state) == (record.run_id, "killed")
    assert "seed: 9" in git(checkout, "show", f"{dead.ref}:params.yaml")
    before = record_file(checkout / ".srpo", dead.run_id).stat().st_mtime_ns
    time.sleep(0.01)
    run(checkout, stages=())
    assert record_file(checkout / ".srpo", dead.run_id).stat().st_mtime_ns == before


def test_the_record_stays_when_the_workspace_is_removed(checkout):
    first = run(checkout, stages=(), seed=7)
    for _ in range(3):
        run(checkout, stages=())
    assert not first.path.exists()
    oldest = records(checkout)[-1]
    assert oldest.run_id == first.run_id
    assert "seed: 7" in git(checkout, "show", f"{oldest.ref}:params.yaml")


def test_a_run_that_cannot_be_committed_ends_as_it_would_and_one_line_says_why(checkout, caplog):
    git(checkout, "update-ref", "refs/srpo/runs", "HEAD")  # git keeps refs as paths: no other can be below it
    run(checkout, stages=())
    (record,) = records(checkout)
    assert (record.state, record.ref) == ("completed", None)
    (line,) = [one.getMessage() for one in caplog.records if one.name == recording.__name__]
    assert record.run_id in line
    assert "\n" not in line


def test_a_damaged_record_is_left_out_with_one_line(checkout, caplog):
    run(checkout, stages=())
    run(checkout, stages=())
    newest, oldest = records(checkout)
    file = record_file(checkout / ".srpo", newest.run_id)
    for content in (
        b"",
        b"{}",
        b"\xff\xfe",
        b"[1]",
        record_file(checkout / ".srpo", oldest.run_id).read_bytes(),
    ):
        caplog.clear()
        file.write_bytes(content)
        assert [one.run_id for one in records(checkout)] == [oldest.run_id]
        assert [str(file) in one.getMessage() and "\n" not in one.getMessage() for one in caplog.records] == [
            True
        ]


def test_a_run_is_found_by_id_ref_beginning_and_names(checkout):
    for _ in range(2):
        run(checkout, stages=())
    newest, oldest = (
        one.changed_to(flow_run_name=name, release=f"/store/models/tiny/versions/{name}-1")
        for one, name in zip(records(checkout), ("red-fox", "blue-owl"), strict=True)
    )
    known = [newest, oldest]
    for reference in (
        oldest.run_id,
        oldest.ref,
        oldest.run_id[:-1],
        "blue-owl",
        "blue-owl-1",
        oldest.release,
    ):
        assert find_record(known, reference) is oldest
    with pytest.raises(ConfigError, match=r"several runs are named '20.*choose one of"):
        find_record(known, oldest.run_id[:4])
    for reference in ("", "nothing", "refs/srpo/runs/"):
        with pytest.raises(ConfigError, match="run"):
            find_record(known, reference)
