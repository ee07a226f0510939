import os
import subprocess

import pytest

from srpo_core.errors import SrpoError
from srpo_core.workspace.git import git, git_path, try_git


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


def test_a_command_that_fails_without_a_word_is_named_with_its_exit_code(repository):
    with pytest.raises(SrpoError, match=r"^'git config --get' in .* failed: exit code 1$"):
        git(repository, "config", "--get", "no.such")


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


@pytest.mark.parametrize("name", [b"caf\xe9", b" blanks ", b"new line\n"], ids=ascii)
def test_a_path_is_returned_byte_by_byte(tmp_path, name):
    top = tmp_path / os.fsdecode(name)
    subprocess.run(["git", "init", "--quiet", str(top)], check=True)
    assert git_path(top, "rev-parse", "--show-toplevel") == top
