"""A run has a workspace of its own: a git worktree below `<home>/runs/<run id>/`, running its own code.

Two runs never touch each other; they share only DVC's cache (by copies or reflinks, which a run cannot
corrupt), the remote, the home directory, and fetched weights, which a run only reads.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from srpo_core.artifacts import replacing
from srpo_core.config import PARAMS_FILE, read_values
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime import file_lock, processes
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.runtime.telemetry import quiet_environment
from srpo_core.storage import store_uri
from srpo_core.workspace.git import git, run_command, without_git_variables

KEEP_WORKSPACES: Final = 3
MODELS: Final = "models"  # where `srpo fetch` puts weights, see models.lock

_DIFFERENCE: Final = ("diff-tree", "-r", "-z", "--name-only", "--no-renames")
_FILES_OF_COMMIT: Final = ("ls-tree", "-r", "-z", "--name-only", "HEAD")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """A checkout of one revision for one run.

    checkout: the user's own; path: the worktree; snapshot: the git tree that it was made from;
    home: the checkout's directory of everything beside outputs.
    """

    run_id: str
    checkout: Path
    path: Path
    home: Path
    snapshot: str

    @property
    def site_cache(self) -> Path:
        """Where DVC keeps its indices for this workspace; never shared, so a killed push spoils no other."""
        return self.path.parent / "dvc"

    def environment(self) -> dict[str, str]:
        """The variables for commands in this workspace: its own code, the shared home, no telemetry."""
        return {
            **without_git_variables(),
            **quiet_environment(),
            "DVC_SITE_CACHE_DIR": str(self.site_cache),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": str(self.path),
            "PYTHONUNBUFFERED": "1",
            # of other people's libraries; a run's log is for what the stages say
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
            "SRPO_HOME": str(self.home),
            "SRPO_STORE": store_uri(),  # a stage runs elsewhere, and reads the champion there
        }


@contextmanager
def open_workspace(
    checkout: Path, *, revision: str | None = None, keep: int = KEEP_WORKSPACES
) -> Iterator[Workspace]:
    """Make a workspace, hold its lock while the run lives, and leave it in place for inspection afterwards.

    revision: a commit, branch or tag; None takes the checkout as it is: HEAD plus uncommitted and
    untracked files, so that `git diff HEAD` in the workspace is what is uncommitted in the checkout.
    First ends the processes that dead runs left behind, and removes all but the newest `keep` of their
    workspaces; a run that is alive is never touched.

    Raises:
        ConfigError: `checkout` is not a git checkout, or it has no such revision.
    """
    top = _top(checkout)
    home = Path(os.environ.get("SRPO_HOME", top / ".srpo")).absolute()
    with file_lock.acquire(home / "runs/lock"):
        run = home / "runs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"  # unique and in order, under the lock
        _sweep(top, home / "runs", keep - 1)
        run.mkdir()
        held = file_lock.acquire(run / "lock")
    with held:
        snapshot = checkout_snapshot(top) if revision is None else _commit(top, revision)
        commit = _commit(top, "HEAD" if revision is None else revision)
        path = run / "workspace"
        git(top, "worktree", "add", "--quiet", "--no-checkout", "--detach", str(path), commit)
        git(path, "read-tree", "-u", "--reset", snapshot)
        workspace = Workspace(run.name, top, path, home, snapshot)
        _share_dvc(workspace)
        _share_models(workspace)
        yield workspace


def checkout_snapshot(checkout: Path) -> str:
    """Write the checkout as it is, uncommitted and untracked files included, as a git tree; return its id.

    The user's index and branch stay untouched: the work is done on a copy of the index.
    """
    with tempfile.TemporaryDirectory(prefix="srpo-index-") as scratch:
        index = Path(scratch) / "index"
        with suppress(FileNotFoundError):  # a checkout without an index yet
            shutil.copy2(git(checkout, "rev-parse", "--path-format=absolute", "--git-path", "index"), index)
        environment = {"GIT_INDEX_FILE": str(index)}
        git(checkout, "add", "--all", environment=environment)
        return git(checkout, "write-tree", environment=environment)


def fetch_data(workspace: Workspace, data: Sequence[str]) -> None:
    """Restore data that `*.dvc` files name, from the cache or else the default remote.

    Raises:
        SrpoError: neither has it.
    """
    if data:
        run_command(
            ["dvc", "pull", "--quiet", *data], cwd=workspace.path, environment=workspace.environment()
        )


def bring_home(workspace: Workspace, stages: list[str]) -> bool:
    """Give the checkout the results: its dvc.lock and the outputs of `stages`; return whether that was done.

    It is done only if the checkout has the same settings and `has_changed` finds nothing, so that `dvc repro` there
    finds nothing to do. A user's edits are never overwritten: where DVC would have to, the reason is logged and the
    checkout's dvc.lock stays as it was.
    """
    top, lock = workspace.checkout, Path("dvc.lock")
    if not has_settings_of_checkout(workspace) or has_changed(workspace):
        return False
    before = (top / lock).read_bytes() if (top / lock).exists() else None
    environment = {**workspace.environment(), "DVC_SITE_CACHE_DIR": str(workspace.home / "dvc")}
    with file_lock.acquire(workspace.home / "runs/home.lock"):
        _write(top / lock, (workspace.path / lock).read_bytes())
        try:
            run_command(["dvc", "checkout", *stages], cwd=top, environment=environment)
        except SrpoError as error:
            _write(top / lock, before)
            log.warning("the results stay in %s: %s", workspace.path, error)
            return False
    return True


def has_changed(workspace: Workspace) -> bool:
    """Whether the checkout differs from what the workspace was made from, in a file that matters to its stages.

    Tracked files matter, and of untracked ones those that a stage reads. A log that is written beside them does not.
    """
    top = workspace.checkout
    changed = _names(git(top, *_DIFFERENCE, workspace.snapshot, checkout_snapshot(top)))
    if not changed:
        return False
    tracked = _names(git(top, "ls-files", "-z")) | _names(git(workspace.path, *_FILES_OF_COMMIT))
    settings = read_values(workspace.path / PARAMS_FILE)
    inputs = [path for stage in read_stages(workspace.path).values() for path in stage.inputs(settings)]
    return any(name in tracked or _is_input(name, inputs) for name in changed)


def _names(listed: str) -> set[str]:
    return set(listed.split("\0")) - {""}


def _is_input(name: str, inputs: Sequence[Path]) -> bool:
    """Whether an untracked file is an input of a stage, is below one, or is the `*.dvc` file of one."""
    path = Path(name.removesuffix(".dvc"))
    return any(path.is_relative_to(one) or one.is_relative_to(path) for one in inputs)


def has_settings_of_checkout(workspace: Workspace) -> bool:
    """Whether params.yaml is the checkout's, to the byte."""
    ours, theirs = (top / PARAMS_FILE for top in (workspace.path, workspace.checkout))
    return ours.read_bytes() == theirs.read_bytes()


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


def _top(checkout: Path) -> Path:
    try:
        return Path(git(checkout, "rev-parse", "--show-toplevel"))
    except SrpoError as error:
        raise ConfigError(
            f"{checkout} is not a git checkout, so a run cannot have a workspace of its own: "
            f"clone the repository with git ({error})"
        ) from None


def _commit(checkout: Path, revision: str) -> str:
    try:
        return git(checkout, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except SrpoError:
        raise ConfigError(
            f"{checkout} has no revision {revision!r}: give a commit, branch or tag that 'git log' knows"
        ) from None


def _share_dvc(workspace: Workspace) -> None:
    """Let the workspace use the checkout's cache and remotes; paths in its own configuration are relative."""
    from dvc.config import Config
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    site_cache = {"core": {"site_cache_dir": str(workspace.site_cache)}}
    try:
        with Repo(str(workspace.checkout), config=site_cache) as repo:
            cache = repo.cache.default_local_cache_dir
            remotes = dict(repo.config["remote"])
    except NotDvcRepoError:
        raise ConfigError(f"{workspace.checkout} has no .dvc/config: restore it with git") from None
    own = workspace.checkout / ".dvc/config.local"
    if own.exists():
        shutil.copyfile(own, workspace.path / ".dvc/config.local")
    with Config(str(workspace.path / ".dvc")).edit("local") as local:
        local.setdefault("cache", {})["dir"] = cache
        for name, remote in remotes.items():
            if Path(remote["url"]).is_absolute():
                local.setdefault("remote", {}).setdefault(name, {})["url"] = remote["url"]


def _share_models(workspace: Workspace) -> None:
    """Link the weights that the checkout fetched: git ignores them, and tens of gigabytes are not copied for a run."""
    fetched, link = workspace.checkout / MODELS, workspace.path / MODELS
    if fetched.is_dir() and not link.exists():
        link.symlink_to(fetched)


def _sweep(checkout: Path, runs: Path, keep: int) -> None:
    """End what dead runs left running, and remove all but the newest `keep` of their workspaces."""
    processes.end_leftovers()
    dead = [run for run in sorted(runs.iterdir(), reverse=True) if run.is_dir() and not _is_alive(run)]
    for run in dead[keep:]:
        with suppress(SrpoError):  # half made, or removed by hand: the directory goes below
            git(checkout, "worktree", "remove", "--force", "--force", str(run / "workspace"))
        shutil.rmtree(run)
    git(checkout, "worktree", "prune")


def _is_alive(run: Path) -> bool:
    lock = file_lock.try_acquire(run / "lock")
    if lock is None:
        return True
    lock.release()
    return False
