"""Find the git checkout that a run starts from, or say in one line what the directory is and what to do."""

import os
import shutil
from pathlib import Path
from typing import Final

from srpo_core.config import PARAMS_FILE
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.dvc_yaml import DVC_FILE
from srpo_core.workspace.git import git, git_path, try_git

_NO_REPOSITORY: Final = "not a git repository"


def require_checkout(directory: Path, *, revision: str | None = None) -> Path:
    """Return the top of the git checkout at `directory`, from which a workspace of `revision` can be made.

    Worktrees, submodules, shallow clones and a detached HEAD are checkouts like any other.

    Raises:
        ConfigError: there is no checkout, git refuses it, it has no commit or no such revision, the project is a
            subdirectory of another project's repository, or DVC cannot write down its path. Or git is not installed.
    """
    top = _top(directory)
    _require_utf8(top)
    if top != directory.resolve() and (directory / DVC_FILE).is_file():
        if (top / DVC_FILE).is_file() and (top / PARAMS_FILE).is_file():
            raise ConfigError(f"{directory} is a directory of the checkout {top}: change to its top")
        raise ConfigError(
            f"{directory} is a subdirectory of the git repository {top}, all of which every run would copy: clone the "
            "project as a repository of its own, or add it there as a submodule"
        )
    commit_of(top, "HEAD" if revision is None else revision)
    return top


def commit_of(checkout: Path, revision: str) -> str:
    """Return the commit that a revision names. Raises `ConfigError` if there is none."""
    found = try_git(
        checkout, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
    )
    if found is not None:
        return found.strip()
    if try_git(checkout, "rev-parse", "--verify", "--quiet", "HEAD") is None:
        raise ConfigError(
            f"{checkout} has no commit yet, and a run starts from one: run 'git add .' and 'git commit -m import' there"
        )
    shallow = (try_git(checkout, "rev-parse", "--is-shallow-repository") or "").strip() == "true"
    more = "; this is a shallow clone: 'git fetch --unshallow --tags' brings the others" if shallow else ""
    raise ConfigError(
        f"{checkout} has no revision {revision!r}: give a commit, branch or tag that 'git log' knows{more}"
    )


def _require_utf8(top: Path) -> None:
    try:
        str(top).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(top).decode(errors="backslashreplace")
        raise ConfigError(
            f"the path of the checkout, {shown}, has bytes that are not UTF-8, and DVC's configuration is UTF-8: move the "
            "checkout to another path"
        ) from None


def _raise_gits_reason(directory: Path) -> None:
    """Raise what stops git here, unless there is no repository: another owner, a broken configuration or repository."""
    try:
        git(directory, "rev-parse", "--git-dir")
    except ConfigError:
        raise
    except SrpoError as error:
        if shutil.which("git") is None or not directory.is_dir():  # then git has printed nothing
            raise ConfigError(str(error)) from None
        if _NO_REPOSITORY not in str(error):
            raise ConfigError(f"{error}. Correct the file or the variable that git names") from None
        if (directory / ".git").exists():
            raise ConfigError(f"{error}. Clone the repository again, or restore its .git") from None


def _top(directory: Path) -> Path:
    kind = try_git(directory, "rev-parse", "--is-bare-repository", "--is-inside-git-dir")
    if kind is None:
        _raise_gits_reason(directory)
        raise ConfigError(
            f"{directory} is not a git checkout, so a run cannot have its own workspace: clone the repository with git, "
            "or, if this is an unpacked archive, run 'git init', 'git add .' and 'git commit -m import' in it"
        )
    bare, inside = kind.split()
    if bare == "true":
        raise ConfigError(
            f"{directory} is a bare repository, which has no files: 'git clone {directory}' makes a checkout"
        )
    if inside == "true":
        raise ConfigError(f"{directory} is inside git's own directory: change to the checkout")
    return git_path(directory, "rev-parse", "--show-toplevel")
