"""The workspace of a run: a git worktree below `<home>/runs/<run id>/`, whose own code is run.

Runs are isolated from each other. They share only DVC's cache (as copies or reflinks, which a run cannot corrupt), the
remote, the home directory, and fetched weights, which a run only reads.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from srpo_core.artifacts import private_home, replacing, user_path
from srpo_core.config import PARAMS_FILE, read_values
from srpo_core.credentials import NOTIFY
from srpo_core.errors import SrpoError, StoreError
from srpo_core.runtime import file_lock, processes
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.runtime.machine import machine_environment, text_environment
from srpo_core.runtime.progress import reporting
from srpo_core.runtime.telemetry import quiet_environment
from srpo_core.storage import store_uri
from srpo_core.workspace.checkout import commit_of, require_checkout
from srpo_core.workspace.dvc import run_dvc
from srpo_core.workspace.dvc_config import share_config
from srpo_core.workspace.git import git, list_names, without_repository_variables
from srpo_core.workspace.snapshot import Untracked, checkout_snapshot, find_untracked, keep_modes

KEEP_WORKSPACES: Final = 3
RUNS: Final = "runs"  # in the home directory: one directory for each workspace
# Variables of the process that runs the flow: it signs and notifies, and no stage does.
FLOW_ONLY: Final = ("SRPO_SIGNING_KEY", NOTIFY)
MODELS: Final = "models"  # directory of the weights that `srpo fetch` downloads, see models.lock

_DIFFERENCE: Final = ("diff-tree", "-r", "-z", "--name-only", "--no-renames")
_FILES_OF_COMMIT: Final = ("ls-tree", "-r", "-z", "--name-only", "HEAD")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """A checkout of one revision for one run.

    checkout: the user's checkout; path: the worktree; snapshot: the git tree that it was made from; home: the directory
    of files that are not outputs, `.srpo` by default; shared: through which its workers exchange files, None for
    SRPO_SHARED.
    """

    run_id: str
    checkout: Path
    path: Path
    home: Path
    snapshot: str
    shared: str | None = None

    @property
    def site_cache(self) -> Path:
        """The directory of DVC's indices for this workspace; not shared, so a killed push damages no other run's."""
        return self.path.parent / "dvc"

    def environment(self) -> dict[str, str]:
        """Return the environment of commands in this workspace: its own code, the shared home, no telemetry, no key.

        It works on this machine, and the commands print UTF-8, which `run_streaming` reads.
        """
        given = machine_environment(without_repository_variables(), self.home)
        for name in FLOW_ONLY:
            given.pop(name, None)
        return {
            **given,
            **quiet_environment(),
            **text_environment(),
            "DVC_SITE_CACHE_DIR": str(self.site_cache),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": str(self.path),
            "PYTHONUNBUFFERED": "1",
            # the log of a run is for messages of the stages, not for warnings of libraries
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
            "SRPO_HOME": str(self.home),
            "SRPO_STORE": store_uri(),  # absolute: a stage runs in another directory
            **({"SRPO_SHARED": self.shared} if self.shared else {}),
        }


@contextmanager
def open_workspace(
    checkout: Path, *, revision: str | None = None, keep: int = KEEP_WORKSPACES
) -> Iterator[Workspace]:
    """Create a workspace, lock it while the run lives, and keep it afterwards for inspection.

    revision: a commit, branch or tag; None takes the current checkout: HEAD plus uncommitted and untracked files, so
    `git diff HEAD` in the workspace shows the uncommitted changes of the checkout. First the processes of dead runs are
    ended, and all but the newest `keep` of their workspaces are removed. Live runs are never touched.

    Raises:
        ConfigError: `checkout` is not a git checkout, it has no such revision, DVC cannot read its configuration, or its
            home belongs to another user.
    """
    top = require_checkout(checkout, revision=revision)
    home = private_home(user_path(os.environ.get("SRPO_HOME", top / ".srpo")))
    with file_lock.acquire(home / RUNS / "lock"):
        run = home / "runs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"  # unique and in order, under the lock
        _remove_dead_runs(top, home / "runs", keep - 1)
        run.mkdir()
        held = file_lock.acquire(run / "lock")
    with held:
        untracked = find_untracked(top) if revision is None else Untracked((), ())
        if left_out := untracked.describe():
            log.warning("%s", left_out)
        snapshot = checkout_snapshot(top, untracked) if revision is None else commit_of(top, revision)
        commit = commit_of(top, "HEAD" if revision is None else revision)
        path = run / "workspace"
        git(top, "worktree", "add", "--quiet", "--no-checkout", "--detach", str(path), commit)
        git(path, "read-tree", "-u", "--reset", snapshot)
        if revision is None:
            keep_modes(top, path, untracked)
        workspace = Workspace(run.name, top, path, home, snapshot)
        share_config(top, path, workspace.site_cache)
        _share_models(workspace)
        yield workspace


def fetch_data(workspace: Workspace, data: Sequence[str]) -> None:
    """Restore the data of `*.dvc` files from the cache, or else from the default remote.

    Raises:
        StoreError: neither has the data, or the remote has other bytes than were pushed.
    """
    if not data:
        return
    try:
        with reporting("fetch the data"):
            run_dvc("pull", *data, cwd=workspace.path, environment=workspace.environment())
    except SrpoError as error:
        raise StoreError(
            f"{', '.join(data)} cannot be restored from DVC's cache or the default remote: {error}. If the remote can be "
            "reached, it lacks objects or has damaged ones: 'srpo data SOURCE' sends these again"
        ) from None


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
            run_dvc("checkout", *stages, cwd=top, environment=environment)
        except SrpoError as error:
            _write(top / lock, before)
            log.warning("the results remain in %s: %s", workspace.path, error)
            return False
    return True


def has_changed(workspace: Workspace) -> bool:
    """Whether the checkout differs from what the workspace was made from, in a file that matters to its stages.

    Tracked files matter, and of untracked ones those that a stage reads. A log that is written beside them does not.
    """
    top = workspace.checkout
    changed = list_names(top, *_DIFFERENCE, workspace.snapshot, checkout_snapshot(top))
    if not changed:
        return False
    tracked = {*list_names(top, "ls-files", "-z"), *list_names(workspace.path, *_FILES_OF_COMMIT)}
    settings = read_values(workspace.path / PARAMS_FILE)
    inputs = [path for stage in read_stages(workspace.path).values() for path in stage.inputs(settings)]
    return any(name in tracked or is_input(name, inputs) for name in changed)


def is_input(name: str, inputs: Sequence[Path]) -> bool:
    """Whether an untracked file is an input of a stage, is below one, or is the `*.dvc` file of one."""
    path = Path(name.removesuffix(".dvc"))
    return any(path.is_relative_to(one) or one.is_relative_to(path) for one in inputs)


def has_settings_of_checkout(workspace: Workspace) -> bool:
    """Whether params.yaml of the workspace and of the checkout are identical."""
    ours, theirs = (top / PARAMS_FILE for top in (workspace.path, workspace.checkout))
    return ours.read_bytes() == theirs.read_bytes()


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


def _share_models(workspace: Workspace) -> None:
    """Link the fetched weights of the checkout: git ignores them, and copying tens of gigabytes would take long."""
    fetched, link = workspace.checkout / MODELS, workspace.path / MODELS
    if fetched.is_dir() and not link.exists():
        link.symlink_to(fetched)


def _remove_dead_runs(checkout: Path, runs: Path, keep: int) -> None:
    """End the processes of dead runs, and remove all but the newest `keep` of their workspaces."""
    processes.end_leftovers()
    newest_first = sorted(runs.iterdir(), reverse=True)
    dead = [run for run in newest_first if run.is_dir() and not file_lock.is_held(run / "lock")]
    for run in dead[keep:]:
        remove_run(checkout, run)
    git(checkout, "worktree", "prune")


def remove_run(checkout: Path, run: Path) -> None:
    """Remove the directory of a dead run, with its workspace. Only for the holder of the lock of all runs."""
    with suppress(SrpoError):  # half made, or removed by hand: the directory is removed below
        git(checkout, "worktree", "remove", "--force", "--force", str(run / "workspace"))
    shutil.rmtree(run)
