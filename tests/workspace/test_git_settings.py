"""Whatever the user's git is set to, a run gets its workspace and a data version its commit and tag."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.release.provenance import git_state
from srpo_core.workspace import data_versions
from srpo_core.workspace.git import git, list_names, missing_identity
from srpo_core.workspace.snapshot import checkout_snapshot
from srpo_core.workspace.worktree import Workspace, has_changed, open_workspace

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = """\
[commit]
    gpgSign = true
    template = /nowhere/template.txt
    cleanup = strip
    verbose = true
[tag]
    gpgSign = true
    forceSignAnnotated = true
[gpg]
    program = false
[user]
    useConfigOnly = true
[init]
    defaultBranch = a b
[core]
    hooksPath = {hooks}
    fsmonitor = {hooks}/fails
    quotePath = true
    commentChar = D
    autocrlf = true
    safecrlf = true
    splitIndex = true
    excludesFile = {hooks}/ignored
    pager = false
    editor = false
[diff]
    external = false
    noprefix = true
    mnemonicPrefix = true
    relative = true
    submodule = log
[color]
    ui = always
[column]
    ui = always
[submodule]
    recurse = true
[status]
    short = true
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("GIT_", "SRPO_"))] + ["EMAIL"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty").write_text("")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "empty"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    top = tmp_path / "checkout"
    for name in ("params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, top / name)
    (top / "dvc.yaml").write_text("stages: {one: {cmd: 'true', deps: [kept.txt]}}\n")
    (top / "kept.txt").write_bytes(b"one\ntwo\n")
    plain = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "--quiet", "-b", "main"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run([*plain, *words], cwd=top, check=True)
    return top


@pytest.fixture
def hostile(checkout, tmp_path, monkeypatch) -> Path:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "post-checkout", "reference-transaction", "fails"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (hooks / "ignored").write_text("*.dvc\n")
    (tmp_path / "gitconfig").write_text(HOSTILE.format(hooks=hooks))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    return checkout


def write_version(workspace: Workspace) -> str:
    """Write what `dvc add data/hpd` writes, commit and tag it, and return the commit's message."""
    (workspace.path / "data").mkdir()
    (workspace.path / "data/hpd.dvc").write_text("outs:\n- {md5: 0123.dir, path: hpd}\n")
    (workspace.path / "data/.gitignore").write_text("/hpd\n")
    data_versions.commit(workspace, "hpd", "data/hpd/0123", ingest={}, findings={})
    return git(workspace.path, "log", "-1", "--format=%an <%ae> %s", "data/hpd/0123")


def test_a_workspace_and_a_data_version_need_none_of_the_users_settings(hostile):
    (hostile / "kept.txt").write_bytes(b"one\r\nedited\r\n")
    (hostile / "näme ü.txt").write_bytes(b"new\r\n")
    with open_workspace(hostile) as run:
        assert (run.path / "kept.txt").read_bytes() == b"one\r\nedited\r\n"
        assert (run.path / "näme ü.txt").read_bytes() == b"new\r\n"
        assert not has_changed(run)
        (hostile / "kept.txt").write_bytes(b"one\n")
        assert has_changed(run)
        state = git_state(run.path)
        assert "diff --git a/kept.txt b/kept.txt\n" in state["diff"]
        assert state["untracked"] == ["näme ü.txt"]
    with open_workspace(hostile, revision="HEAD") as run:
        assert (run.path / "kept.txt").read_bytes() == b"one\ntwo\n"
        assert write_version(run) == "srpo <srpo@localhost> Data: data/hpd/0123"
        assert "data/hpd.dvc" in list_names(run.path, "ls-tree", "-r", "-z", "--name-only", "data/hpd/0123")
        assert git(run.path, "cat-file", "-t", "data/hpd/0123") == "commit"
        assert data_versions.is_tag_of_head(run, "data/hpd/0123") is False
    assert "gpgsig" not in git(hostile, "cat-file", "-p", "data/hpd/0123")


def test_settings_by_variables_reach_git_and_variables_of_a_repository_do_not(checkout, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    for number, (key, value) in enumerate([("user.name", "Ada"), ("commit.gpgSign", "true")]):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "ada@example.org")
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_QUARANTINE_PATH"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("GIT_LITERAL_PATHSPECS", "1")
    with open_workspace(checkout, revision="HEAD") as run:
        environment = run.environment()
        assert write_version(run) == "Ada <ada@example.org> Data: data/hpd/0123"
    assert environment["GIT_SSH_COMMAND"] == "ssh -i key"
    assert environment["GIT_CONFIG_KEY_0"] == "user.name"
    assert not {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"} & set(environment)


@pytest.mark.parametrize(
    ("settings", "variables", "missing"),
    [
        ("", {}, {"AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"}),
        ("[user]\nname = Ada\nemail = a@example.org", {}, set()),
        ("[user]\nname = Ada", {}, {"AUTHOR_EMAIL", "COMMITTER_EMAIL"}),
        ("[user]\nname =\nemail = a@example.org", {}, {"AUTHOR_NAME", "COMMITTER_NAME"}),
        ("[user]\nname = Ada", {"EMAIL": "a@example.org"}, set()),
        ("[author]\nname = Ada\nemail = a@example.org", {}, {"COMMITTER_NAME", "COMMITTER_EMAIL"}),
        ("", {"GIT_AUTHOR_NAME": "Ada"}, {"AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"}),
    ],
)
def test_only_the_missing_parts_of_an_identity_are_filled_in(
    checkout, tmp_path, monkeypatch, settings, variables, missing
):
    (tmp_path / "empty").write_text(settings)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = missing_identity(checkout)
    assert set(found) == {f"GIT_{name}" for name in missing}
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "second", environment=found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
class TestACheckoutOfAnotherUser:
    @pytest.fixture(autouse=True)
    def _give_away(self, checkout, monkeypatch):
        monkeypatch.delenv("SUDO_UID", raising=False)
        os.chown(checkout, 12345, 12345)
        os.chown(checkout / ".git", 12345, 12345)

    def test_the_error_names_the_cause_and_gits_own_advice(self, checkout):
        with pytest.raises(ConfigError) as caught, open_workspace(checkout):
            pass
        assert "belongs to another user (dubious ownership)" in str(caught.value)
        assert f"git config --global --add safe.directory {checkout}" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_safe_directory_by_variables_is_enough_for_a_run(self, checkout, monkeypatch):
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(checkout))
        with open_workspace(checkout) as run:
            assert (run.path / "kept.txt").read_text() == "one\ntwo\n"
            assert not has_changed(run)


def test_without_git_the_error_says_so_and_so_does_a_missing_directory(checkout, monkeypatch):
    with pytest.raises(SrpoError, match="is not a directory"):
        git(checkout / "none", "status")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SrpoError, match="'git' was not found: install it"):
        checkout_snapshot(checkout)


def test_an_error_of_git_names_the_command_and_not_the_settings_of_this_project(checkout):
    with pytest.raises(SrpoError, match=r"^'git rev-parse none' in .* failed: fatal: "):
        git(checkout, "rev-parse", "none")
