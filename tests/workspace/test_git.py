import subprocess

import pytest

from srpo_core.errors import SrpoError
from srpo_core.workspace.git import git, run_command, try_git


@pytest.fixture
def repository(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def test_git_strips_the_output_and_try_git_does_not(repository):
    assert git(repository, "rev-parse", "--is-inside-work-tree") == "true"
    assert try_git(repository, "rev-parse", "--is-inside-work-tree") == "true\n"


def test_on_failure_git_raises_one_line_and_try_git_returns_none(repository):
    with pytest.raises(SrpoError, match=r"^'git rev-parse HEAD' in .* failed: fatal: "):
        git(repository, "rev-parse", "HEAD")
    assert try_git(repository, "rev-parse", "HEAD") is None


def test_the_users_hooks_do_not_run(repository):
    hook = repository / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(repository, *identity, "commit", "--quiet", "--allow-empty", "-m", "first")
    assert git(repository, "log", "--format=%s") == "first"


def test_variables_of_a_git_hook_that_calls_this_project_are_ignored(repository, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert git(repository, "rev-parse", "--git-dir") == ".git"


def test_without_git_there_is_no_output(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert try_git(repository, "status") is None


def test_a_command_that_prints_nothing_fails_with_its_exit_code(tmp_path):
    with pytest.raises(SrpoError, match="failed: exit code 3"):
        run_command(["sh", "-c", "exit 3"], cwd=tmp_path, environment={"PATH": "/bin:/usr/bin"})


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        (
            "ERROR: unexpected error - no such bucket\n\nHaving any troubles? Hit us up at https://dvc.org/support",
            "ERROR: unexpected error - no such bucket",
        ),
        (
            "ERROR: failed to transfer 'ab' - denied\nERROR: failed to push data - 1 files failed to upload",
            "ERROR: failed to transfer 'ab' - denied; ERROR: failed to push data - 1 files failed to upload",
        ),
        (
            "ERROR: failed to pull - Checkout failed for following targets:\ndata/emoji\nIs your cache up to date?",
            "ERROR: failed to pull - Checkout failed for following targets: data/emoji",
        ),
        ("something\n\nHaving any troubles? Hit us up", "something"),
        ("fatal: not a repository\nhint: ERROR: no", "fatal: not a repository"),
    ],
)
def test_the_reason_is_the_error_line_and_not_the_advice_after_it(printed, told, tmp_path):
    with pytest.raises(SrpoError, match="failed: ") as raised:
        run_command(
            ["sh", "-c", f'printf "%s" "{printed}" >&2; exit 255'],
            cwd=tmp_path,
            environment={"PATH": "/bin:/usr/bin"},
        )
    assert str(raised.value).partition("failed: ")[2] == told
