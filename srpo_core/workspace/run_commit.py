"""The commit of a run, with its code, params.yaml and dvc.lock, kept by the git ref `refs/srpo/runs/<run id>`.

`git checkout REF && dvc repro` restores all results of the run and executes no stage, as long as DVC's cache has them.
It is no tag: it may have what nobody meant to commit, such as a token in .dvc/config, and `git push --tags` would
publish it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from srpo_core.config import PARAMS_FILE, read_values
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.workspace.git import git, list_names, missing_identity, try_git
from srpo_core.workspace.run_record import REF_PREFIX
from srpo_core.workspace.worktree import Workspace, is_input

LOCK: Final = Path("dvc.lock")
_ADDED: Final = ("diff-tree", "-r", "-z", "--name-only", "--no-renames", "--diff-filter=A", "HEAD")


def commit_run(workspace: Workspace) -> str:
    """Make the commit and the ref of a run from its workspace, and return the ref's name. Safe to repeat.

    The commit has the tracked files as the run saw them, uncommitted changes included. Of untracked files it has only
    those that a stage reads: notes that lie in the checkout are no part of the run.

    Raises:
        SrpoError: git failed, for instance because the disk is full.
    """
    path, ref = workspace.path, f"{REF_PREFIX}{workspace.run_id}"
    index = {"GIT_INDEX_FILE": str(path.parent / "commit.index")}
    try:
        git(path, "read-tree", workspace.snapshot, environment=index)
        git(
            path,
            *("update-index", "-z", "--force-remove", "--stdin"),
            environment=index,
            given="".join(f"{name}\0" for name in _not_of_the_run(workspace)),
        )
        own = [str(name) for name in (PARAMS_FILE, LOCK) if (path / name).is_file()]
        git(path, "update-index", "--add", "--", *own, environment=index)
        tree = git(path, "write-tree", environment=index)
    finally:
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
    identity = missing_identity(path)
    commit = git(
        path, "commit-tree", tree, "-p", "HEAD", "-m", f"Run: {workspace.run_id}", environment=identity
    )
    git(path, "update-ref", ref, commit)
    return ref


def remove_ref(checkout: Path, ref: str) -> None:
    """Delete the ref of a run, if it is there; git removes the commit some time later."""
    git(checkout, "update-ref", "-d", ref)


def files_that_differ(checkout: Path, one: str, other: str) -> list[str] | None:
    """List the files, other than settings and results, that differ between two refs; None if git lacks one of them."""
    for ref in (one, other):
        if try_git(checkout, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}") is None:
            return None
    names = list_names(
        checkout,
        *("diff-tree", "-r", "-z", "--name-only", "--no-renames", one, other),
    )
    return [name for name in names if name not in (str(PARAMS_FILE), str(LOCK))]


def _not_of_the_run(workspace: Workspace) -> Sequence[str]:
    """Return the files of the snapshot that git does not track in the checkout and that no stage reads."""
    added = list_names(workspace.path, *_ADDED, workspace.snapshot)
    if not added:
        return []
    tracked = set(list_names(workspace.checkout, "ls-files", "-z"))
    settings = read_values(workspace.path / PARAMS_FILE)
    inputs = [path for stage in read_stages(workspace.path).values() for path in stage.inputs(settings)]
    return [name for name in added if name not in tracked and not is_input(name, inputs)]
