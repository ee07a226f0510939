"""What `srpo clean` removes: runs, resume state, caches and Ray's sessions that nobody has used for some days.

Kept are the newest run, runs whose release is in the store, and all that a running process uses or that was used since
the newest run, or a running one, began. Each part can be removed again after a kill.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from srpo_core.runtime import file_lock
from srpo_core.runtime.ray_sessions import unused_sessions
from srpo_core.runtime.resume import discard_state, resume_states
from srpo_core.storage import Store, version_key
from srpo_core.workspace.git import git
from srpo_core.workspace.run_commit import remove_ref
from srpo_core.workspace.run_record import RunRecord, read_records, record_file, started_at
from srpo_core.workspace.unused_cache import unused_objects
from srpo_core.workspace.worktree import RUNS, remove_run

# directories of the home of which each entry is used or removed as a whole
_CACHES: Final = {
    "images": "image cache",
    "base_images": "image cache",
    "tensorboard": "live figures",
    "wandb": "live figures",
}


@dataclass(frozen=True)
class Expired:
    """Something that can be removed. what: its kind; num_bytes: of its files; remove: returns whether it is gone now."""

    what: str
    name: str
    num_bytes: int
    remove: Callable[[], bool]
    ref: str | None = None


@dataclass(frozen=True)
class Retention:
    """What may be removed of a checkout and its home directory.

    before: what was used last before this time, seconds since 1970, is removed. stage_running, live: whether a process
    runs a stage, and which runs exist.
    """

    checkout: Path
    home: Path
    before: float
    records: Sequence[RunRecord]
    live: frozenset[str]
    stage_running: bool

    @property
    def unused_since(self) -> float:
        """The time before which a cache was used last, if neither the newest run nor a running one has used it."""
        names = [*self.live, *(record.run_id for record in self.records[:1])]
        begun = [moment.timestamp() for name in names if (moment := started_at(name)) is not None]
        return min([self.before, *begun])


def open_retention(checkout: Path, home: Path, *, before: datetime) -> Retention:
    """Look at the runs and the stages that exist now."""
    directories = _run_directories(home)
    live = frozenset(run.name for run in directories if file_lock.is_held(run / "lock"))
    return Retention(
        checkout=checkout,
        home=home,
        before=before.timestamp(),
        records=read_records(home),
        live=live,
        stage_running=any(resume_states(home).values()),
    )


def expired_runs(retention: Retention, store: Callable[[], Store]) -> Iterator[Expired]:
    """Yield the old runs, with workspace, record and ref, and old workspaces without a record.

    store: opens the store of the releases; it is only read if an old run has published.

    Raises:
        StoreError: the store cannot be read, so it is not known which runs have a release.
    """
    recorded = {file.stem for file in (retention.home / "history").glob("*.json")}
    releases: _Releases | None = None
    for record in retention.records[1:]:
        last = (record.ended or record.started).timestamp()
        if last >= retention.before or record.run_id in retention.live:
            continue
        if record.release is not None:
            releases = releases or _Releases(store())
            if releases.may_have(record):
                continue
        yield _run(retention, record.run_id, record.ref, partial(_remove_report, record, store))
    for run in _run_directories(retention.home)[1:]:
        moment = started_at(run.name)
        if run.name in recorded or run.name in retention.live or moment is None:
            continue
        if moment.timestamp() < retention.before:
            yield _run(retention, run.name, None)


def expired_state(retention: Retention) -> Iterator[Expired]:
    """Yield the resume state of interrupted stages, caches of images, live figures, and Ray's sessions."""
    limit = retention.unused_since
    for directory, is_held in resume_states(retention.home).items():
        if not is_held and last_used(directory) < limit:
            yield Expired(
                "resume state", directory.name, size_of(directory), partial(discard_state, directory)
            )
    caches = [] if retention.live or retention.stage_running else list(_CACHES.items())
    for name, what in caches:
        root = retention.home / name
        for entry in [] if root.is_symlink() else sorted(root.glob("*")):
            if last_used(entry) < limit:
                yield Expired(what, f"{name}/{entry.name}", size_of(entry), partial(_remove, entry))
    for session in unused_sessions():
        if last_used(session) < limit:
            yield Expired("Ray session", str(session), size_of(session), partial(_remove_session, session))


def expired_objects(retention: Retention, runs: Sequence[Expired] = ()) -> tuple[Expired | None, str]:
    """Return what DVC's cache has for nobody, and else why nothing of it is removed.

    runs: those that are removed before.

    Raises:
        ConfigError: it cannot be read what needs the cache.
    """
    if retention.live:
        return None, f"run {min(retention.live)} is using it"
    gone, refs = {run.name for run in runs}, [run.ref for run in runs if run.ref]
    workspaces = [
        path
        for run in _run_directories(retention.home)
        if run.name not in gone and ((path := run / "workspace") / ".dvc").is_dir()
    ]

    find = partial(
        unused_objects, retention.checkout, retention.home / "dvc", workspaces, before=retention.before
    )
    found = find(without=refs)
    if not found.files:
        return None, found.reason

    def remove() -> bool:
        with file_lock.acquire(retention.home / RUNS / "lock"):  # no run starts meanwhile
            if any(file_lock.is_held(run / "lock") for run in _run_directories(retention.home)):
                return False
            return not find(delete=True).reason

    size = sum(map(size_of, found.files))
    return Expired("DVC cache", f"{len(found.files)} objects of {found.directory}", size, remove), ""


def last_used(path: Path) -> float:
    """Return when a file, or one below a directory, was last written or read; links are not followed."""
    times = [os.lstat(path).st_mtime]
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            try:
                state = os.lstat(Path(directory, name))
            except FileNotFoundError:
                continue
            # reading a directory, as this function does, changes its time of access
            times.append(state.st_mtime if name in names else max(state.st_mtime, state.st_atime))
    if not path.is_dir():
        times.append(os.lstat(path).st_atime)
    return max(times)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files below a directory; links are not followed."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(Path(directory, name)).st_size
            except FileNotFoundError:
                continue
    return total if path.is_dir() and not path.is_symlink() else os.lstat(path).st_size


class _Releases:
    """The versions of a store, read once."""

    def __init__(self, store: Store) -> None:
        self._uri, self._versions = store.uri, set(store.versions())

    def may_have(self, record: RunRecord) -> bool:
        """Whether the release of a run is there; one of another store counts as being there."""
        version = record.version or ""
        in_this_store = record.release == f"{self._uri}/{version_key(version)}"
        return not in_this_store or version in self._versions


def _remove_report(record: RunRecord, store: Callable[[], Store]) -> None:
    """Remove the report of a run from the store. One in another store stays."""
    if record.report_store is not None and (opened := store()).uri == record.report_store:
        opened.reports.remove(record.run_id)


def _nothing() -> None:
    """Remove nothing: a run without a record has no report that is known."""


def _run(
    retention: Retention, run_id: str, ref: str | None, remove_report: Callable[[], None] = _nothing
) -> Expired:
    directory = retention.home / RUNS / run_id
    num_bytes = size_of(directory) if directory.is_dir() else 0

    def remove() -> bool:
        with file_lock.acquire(retention.home / RUNS / "lock"):
            if file_lock.is_held(directory / "lock"):
                return False
            remove_report()
            if ref is not None:
                remove_ref(retention.checkout, ref)
            if directory.is_dir():
                remove_run(retention.checkout, directory)
                git(retention.checkout, "worktree", "prune")
            # last: until then `srpo runs` shows it, and repeating the command ends what was killed
            record_file(retention.home, run_id).unlink(missing_ok=True)
        return True

    return Expired("run", run_id, num_bytes, remove, ref)


def _run_directories(home: Path) -> list[Path]:
    """Return the directories of runs, the newest first."""
    found = [path for path in (home / RUNS).glob("*") if path.is_dir() and not path.is_symlink()]
    return sorted(found, reverse=True)


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def _remove_session(session: Path) -> bool:
    if session not in unused_sessions():
        return False
    return _remove(session)
