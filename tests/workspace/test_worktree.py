import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dvc.config import Config

from srpo_core.config import load_settings, write_settings
from srpo_core.errors import ConfigError, StageError
from srpo_core.runtime.processes import OWNER
from srpo_core.workspace import worktree
from srpo_core.workspace.reproduce import reproduce
from srpo_core.workspace.snapshot import checkout_snapshot
from srpo_core.workspace.worktree import bring_home, has_changed, open_workspace

ROOT = Path(__file__).resolve().parents[2]

DVC_YAML = """\
stages:
  double:
    cmd: python double.py
    deps: [double.py]
    params: [seed]
    outs: [runs/double.txt]
"""
DOUBLE = "import os, yaml; os.makedirs('runs', exist_ok=True)\n" + (
    "open('runs/double.txt', 'w').write(str(2 * yaml.safe_load(open('params.yaml'))['seed']))\n"
)


def git(cwd: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    top = tmp_path / "checkout"
    for name in (
        "profiles/tiny.yaml",
        "params.yaml",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes((ROOT / name).read_bytes())
    (top / "dvc.yaml").write_text(DVC_YAML)
    (top / "double.py").write_text(DOUBLE)
    (top / "kept.txt").write_text("committed\n")
    git(top, "init", "--quiet", "--initial-branch=main")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "first")
    return top


def test_a_relative_store_path_in_a_workspace_is_relative_to_the_checkout(checkout, monkeypatch):
    ask = "from srpo_core.storage import open_store; print(open_store().uri)"
    monkeypatch.chdir(checkout)
    for given, store in (
        (None, checkout / "store"),
        ("other", checkout / "other"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ):
        monkeypatch.delenv("SRPO_STORE", raising=False)
        if given:
            monkeypatch.setenv("SRPO_STORE", given)
        with open_workspace(checkout) as workspace:
            environment = {**workspace.environment(), "PYTHONPATH": str(ROOT)}
        said = subprocess.run(
            [sys.executable, "-c", ask],
            cwd=workspace.path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert said.stdout.strip() == str(store)


def test_a_workspace_equals_the_checkout_and_its_git_diff_shows_uncommitted_changes(checkout):
    (checkout / "kept.txt").write_text("edited\n")
    (checkout / "new.txt").write_text("untracked\n")
    (checkout / "double.py").unlink()
    (checkout / "store").mkdir()
    (checkout / "store/ignored.bin").write_text("ignored")
    git(checkout, "add", "kept.txt")
    (checkout / "kept.txt").write_text("edited again\n")
    before = git(checkout, "status", "--porcelain")
    with open_workspace(checkout) as run:
        assert (run.path / "kept.txt").read_text() == "edited again\n"
        assert (run.path / "new.txt").read_text() == "untracked\n"
        assert not (run.path / "double.py").exists()
        assert not (run.path / "store").exists()
        diff = git(run.path, "diff", "HEAD", "--stat=200")
        assert [name in diff for name in ("kept.txt", "new.txt", "double.py")] == [True] * 3
        assert git(run.path, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
        assert git(run.path, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD"
    assert git(checkout, "status", "--porcelain") == before
    assert git(checkout, "branch", "--list") == "* main"


def test_a_named_revision_excludes_uncommitted_changes(checkout):
    git(checkout, "tag", "v1")
    (checkout / "kept.txt").write_text("later\n")
    git(checkout, "commit", "--quiet", "-am", "second")
    (checkout / "kept.txt").write_text("uncommitted\n")
    with open_workspace(checkout, revision="v1") as run:
        assert (run.path / "kept.txt").read_text() == "committed\n"
        assert git(run.path, "status", "--porcelain") == ""


def test_a_directory_without_git_or_an_unknown_revision_gives_a_clear_error(checkout, tmp_path):
    (tmp_path / "plain").mkdir()
    with (
        pytest.raises(ConfigError, match=r"plain is not a git checkout.*clone the repository"),
        open_workspace(tmp_path / "plain"),
    ):
        pass
    with pytest.raises(ConfigError, match="no revision 'v9'"), open_workspace(checkout, revision="v9"):
        pass
    assert not (tmp_path / "plain/.srpo").exists()


def test_the_snapshot_changes_only_with_files_that_git_does_not_ignore(checkout):
    first = checkout_snapshot(checkout)
    (checkout / "store").mkdir()
    (checkout / "store/x").write_text("ignored")
    assert checkout_snapshot(checkout) == first
    (checkout / "new.txt").write_text("x")
    assert checkout_snapshot(checkout) != first


def test_commands_in_a_workspace_run_its_own_code_and_write_under_srpo_home(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("SRPO_NOTIFY", "slack://a/b/c")
    with open_workspace(checkout) as run:
        environment = run.environment()
        assert "SRPO_NOTIFY" not in environment, "a stage notifies nobody"
        assert environment["PYTHONPATH"] == str(run.path)
        assert environment["SRPO_HOME"] == str(checkout / ".srpo")
        assert Path(environment["DVC_SITE_CACHE_DIR"]).is_relative_to(checkout / ".srpo")
        assert environment["DVC_NO_ANALYTICS"] == "1"
        assert "GIT_DIR" not in environment


def test_the_cache_and_the_remote_are_those_of_the_checkout(checkout):
    with open_workspace(checkout) as run:
        seen = Config(str(run.path / ".dvc"))
        assert seen["cache"]["dir"] == str(checkout / ".dvc/cache")
        assert seen["remote"]["default"]["url"] == str(checkout / ".srpo/dvc-remote")
        assert git(run.path, "status", "--porcelain") == ""


def test_written_settings_equal_the_profile_or_the_patched_profile(checkout):
    with open_workspace(checkout) as run:
        write_settings(run.path, profile="tiny", patch={})
        assert (run.path / "params.yaml").read_bytes() == (ROOT / "profiles/tiny.yaml").read_bytes()
        tiny = load_settings(ROOT / "profiles/tiny.yaml")
        steps = 2 * tiny.train.checkpoint_every
        settings = write_settings(run.path, profile="tiny", patch={"seed": 7, "train": {"steps": steps}})
        assert load_settings(run.path / "params.yaml") == settings
        assert (settings.seed, settings.train) == (7, tiny.train.model_copy(update={"steps": steps}))
        kept = write_settings(run.path, profile=None, patch={})
        assert kept == settings


def test_wrong_settings_give_a_one_line_error(checkout):
    with open_workspace(checkout) as run:
        with pytest.raises(ConfigError, match=r"unknown profile 'huge': known are tiny"):
            write_settings(run.path, profile="huge", patch={})
        with pytest.raises(ConfigError, match=r"tiny.yaml with the patch: unknown key 'sead'"):
            write_settings(run.path, profile="tiny", patch={"sead": 1})


@pytest.mark.pipeline
def test_a_second_run_is_cached_and_dvc_repro_in_the_checkout_has_nothing_to_do(checkout):
    lines: list[str] = []
    for cached in (False, True):
        with open_workspace(checkout) as run:
            write_settings(run.path, profile="tiny", patch={})
            assert reproduce(run, "double", lines.append).cached is cached
            assert bring_home(run, ["double"])
    assert (checkout / "runs/double.txt").read_text() == "0"
    again = subprocess.run(
        ["dvc", "repro"], check=False, cwd=checkout, capture_output=True, text=True, env=run.environment()
    )
    assert "didn't change, skipping" in again.stdout
    assert again.returncode == 0


@pytest.mark.pipeline
def test_results_are_not_copied_to_a_checkout_with_other_settings_or_edits(checkout):
    with open_workspace(checkout) as run:
        write_settings(run.path, profile="tiny", patch={"seed": 21})
        reproduce(run, "double", str)
        assert (run.path / "runs/double.txt").read_text() == "42"
        assert not bring_home(run, ["double"])
        write_settings(run.path, profile="tiny", patch={})
        (checkout / "kept.txt").write_text("edited meanwhile\n")
        assert not bring_home(run, ["double"])
    assert not (checkout / "dvc.lock").exists()
    assert not (checkout / "runs").exists()


@pytest.mark.pipeline
def test_an_untracked_log_that_no_stage_reads_does_not_block_copying_results(checkout):
    """`make demo | tee demo.log` writes such a log during the run."""
    (checkout / "demo.log").write_text("begins\n")
    with open_workspace(checkout) as run:
        reproduce(run, "double", str)
        (checkout / "demo.log").write_text("begins\nand goes on\n")
        (checkout / "notes.txt").write_text("made during the run")
        assert bring_home(run, ["double"])
    assert (checkout / "runs/double.txt").read_text() == "0"


@pytest.mark.parametrize(
    "change",
    [
        "a tracked file is edited",
        "a tracked file is removed",
        "a new file is added",
        "an input is new",
        "an input is edited",
    ],
)
def test_a_changed_tracked_file_or_untracked_input_marks_the_checkout_as_changed(checkout, change):
    (checkout / "dvc.yaml").write_text(DVC_YAML.replace("[double.py]", "[double.py, words]"))
    (checkout / "words").mkdir()
    (checkout / "words/a.txt").write_text("untracked input")
    with open_workspace(checkout) as run:
        assert not has_changed(run)
        if change == "a tracked file is edited":
            (checkout / "kept.txt").write_text("edited meanwhile\n")
        elif change == "a tracked file is removed":
            git(checkout, "rm", "--quiet", "kept.txt")
        elif change == "a new file is added":
            (checkout / "new.txt").write_text("added to the index")
            git(checkout, "add", "new.txt")
        else:
            (checkout / "words" / ("b.txt" if change == "an input is new" else "a.txt")).write_text("other")
        assert has_changed(run)


@pytest.mark.pipeline
def test_editing_a_result_in_a_workspace_does_not_change_the_cache(checkout):
    for _ in range(2):
        with open_workspace(checkout) as run:
            write_settings(run.path, profile="tiny", patch={})
            reproduce(run, "double", str)
            assert (run.path / "runs/double.txt").read_text() == "0"
            (run.path / "runs/double.txt").write_text("spoiled")


def test_a_failed_stage_raises_its_error_line_with_its_exit_code(checkout):
    (checkout / "double.py").write_text(
        "import sys; print('srpo: error: seed 0 has no double', file=sys.stderr); sys.exit(3)"
    )
    with open_workspace(checkout) as run, pytest.raises(StageError) as caught:
        reproduce(run, "double", str)
    assert str(caught.value) == "stage double: seed 0 has no double"
    assert caught.value.exit_code == 3


def test_a_missing_input_raises_the_error_line_of_dvc(checkout):
    (checkout / "double.py").unlink()
    with (
        open_workspace(checkout) as run,
        pytest.raises(StageError, match=r"failed to reproduce 'double'.*double.py"),
    ):
        reproduce(run, "double", str)


def test_old_workspaces_are_removed_and_those_of_live_runs_are_kept(checkout):
    with open_workspace(checkout, keep=2) as living:
        dead = []
        for _ in range(3):
            with open_workspace(checkout, keep=2) as run:
                dead.append(run.path)
        assert [path.exists() for path in dead] == [False, True, True]
        assert living.path.exists()
    listed = git(checkout, "worktree", "list")
    assert str(dead[0]) not in listed
    assert str(dead[2]) in listed


def test_after_kill_9_the_next_run_ends_the_remaining_processes_and_succeeds(checkout):
    script = (
        "import time; from pathlib import Path; from srpo_core.runtime.processes import owner_mark\n"
        "from srpo_core.workspace.worktree import open_workspace\n"
        "with open_workspace(Path.cwd()) as run:\n"
        "    print(run.run_id, owner_mark(), flush=True); time.sleep(300)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=checkout, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    run_id, mark = killed.stdout.readline().split()
    orphan = subprocess.Popen(["sleep", "300"], env={**os.environ, OWNER: mark}, start_new_session=True)
    try:
        with open_workspace(checkout):
            assert orphan.poll() is None, "the run is alive: what it started must be left alone"
        killed.kill()
        killed.wait()
        killed.stdout.close()
        with open_workspace(checkout, keep=1):
            time.sleep(0.1)
            assert orphan.poll() is not None
        assert not (checkout / ".srpo/runs" / run_id).exists()
    finally:
        orphan.kill()
        orphan.wait()


def test_fetched_weights_are_linked_in_every_workspace_and_never_added_to_git(checkout):
    (checkout / "models/base").mkdir(parents=True)
    (checkout / "models/base/weights.bin").write_text("tens of gigabytes")
    for revision in (None, "main"):
        with open_workspace(checkout, revision=revision, keep=1) as run:
            assert (run.path / "models/base/weights.bin").read_text() == "tens of gigabytes"
            assert "models" not in git(run.path, "ls-tree", "-r", "--name-only", run.snapshot)
            assert git(run.path, "status", "--porcelain") == ""
    with open_workspace(checkout, keep=1):  # removes the two earlier workspaces
        assert (checkout / "models/base/weights.bin").exists()


def test_dvc_reruns_a_stage_when_the_fetched_weights_change(checkout):
    (checkout / "models").mkdir()
    (checkout / "models/weights.bin").write_text("one")
    graph = DVC_YAML.replace("[double.py]", "[double.py, models/weights.bin]")
    (checkout / "dvc.yaml").write_text(graph)
    with open_workspace(checkout) as run:
        assert not reproduce(run, "double", lambda line: None).cached
        assert reproduce(run, "double", lambda line: None).cached
        (checkout / "models/weights.bin").write_text("another")
        assert not reproduce(run, "double", lambda line: None).cached


def test_an_incomplete_worktree_is_removed(checkout):
    with open_workspace(checkout) as run:
        pass
    (run.path / ".git").unlink()
    (workspaces_dir := checkout / ".srpo/runs/20000101-000000-000000").mkdir()
    with open_workspace(checkout, keep=1):
        assert not run.path.parent.exists()
        assert not workspaces_dir.exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 2
    assert worktree.KEEP_WORKSPACES >= 2


def test_a_patch_may_contain_non_ascii_text(checkout):
    with open_workspace(checkout) as run:
        pair = {"wanted": {"墨": 1}, "unwanted": {"3D": 1}}
        patch = {"control_words": {"use": "墨", "library": {"墨": pair}}}
        write_settings(run.path, profile="tiny", patch=patch)
        assert yaml.safe_load((run.path / "params.yaml").read_text())["control_words"]["use"] == "墨"
