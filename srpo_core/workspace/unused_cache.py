"""The objects of DVC's cache that nothing needs any more: no branch, tag, experiment or run in git, and no workspace.

`dvc gc` means the same by its options --all-branches, --all-tags, --all-experiments, --workspace and --projects, but it
does not know the refs of runs. It cannot tell what it would free, and keeps no object because it is young.
"""

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import ConfigError
from srpo_core.workspace.dvc_config import require_config
from srpo_core.workspace.git import git
from srpo_core.workspace.run_record import REF_PREFIX

_STAGE_LOCKS: Final = "rwlock"
_REFS: Final = ("refs/heads", "refs/remotes", "refs/tags", "refs/exps", REF_PREFIX.rstrip("/"))


@dataclass(frozen=True)
class UnusedObjects:
    """Files of DVC's cache. directory: of the cache; reason: why none is known to be unused, or empty."""

    directory: Path
    files: tuple[Path, ...] = ()
    reason: str = ""


def unused_objects(
    checkout: Path,
    site_cache: Path,
    workspaces: Sequence[Path],
    *,
    before: float,
    without: Collection[str] = (),
    delete: bool = False,
) -> UnusedObjects:
    """Return the objects that were written before a time (seconds since 1970) and that nothing needs.

    workspaces: of runs, whose dvc.lock counts. without: refs that are removed first. delete: remove the objects, while
    DVC is locked in the checkout. A cache outside the checkout may be shared with other projects, whose needs are not
    known here: nothing in it is called unused. Nor is anything while DVC runs a stage in the checkout.

    Raises:
        ConfigError: a revision of git, or a workspace, cannot be read by DVC, or DVC is running in the checkout.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    require_config(checkout)
    # without a remote, what a revision needs and the cache lacks is not fetched
    config: dict[str, Any] = {"core": {"site_cache_dir": str(site_cache), "remote": None}}
    used: set[str] = set()
    try:
        with (
            _without_warnings(),
            Repo(str(checkout), config=config) as repo,
            repo.lock if delete else nullcontext(),
        ):
            cache = repo.cache.local
            directory = Path(cache.path)
            if not directory.is_relative_to(checkout):
                return UnusedObjects(directory, reason="it is outside the checkout and may be shared")
            if process := _running_stage(Path(repo.tmp_dir)):
                return UnusedObjects(
                    directory, reason=f"DVC runs a stage in this checkout (process {process})"
                )
            used.update(_needed(repo, _commits(checkout, without)))
            for workspace in workspaces:
                with Repo(str(workspace), config=config) as other:
                    used.update(_needed(other, []))
            objects = [Path(cache.oid_to_path(oid)) for oid in cache.all() if oid not in used]
            unused = tuple(path for path in sorted(objects) if _is_older(path, before))
            for path in unused if delete else ():
                path.unlink(missing_ok=True)
    except DvcException as error:
        raise ConfigError(
            f"what DVC's cache is needed for cannot be read ({' '.join(str(error).split())}): nothing of it is removed"
        ) from None
    return UnusedObjects(directory, unused)


def _needed(repo: Any, commits: list[str]) -> Iterator[str]:
    """Yield the objects of the working tree and of commits; one that the cache lacks itself cannot be looked into."""
    for infos in repo.used_objs(revs=commits, force=True).values():
        yield from (info.value for info in infos)


def _commits(checkout: Path, without: Collection[str]) -> list[str]:
    """Return the commits that branches, tags, experiments and runs point to, and HEAD: of each content, one.

    DVC takes 0.2 s for a commit, and nightly runs without new data or code differ only in their names.
    """
    form = "%(refname) %(objecttype) %(objectname) %(tree) %(*objecttype) %(*objectname) %(*tree)"
    commits = {git(checkout, "rev-parse", "HEAD^{tree}"): git(checkout, "rev-parse", "HEAD")}
    for line in git(checkout, "for-each-ref", f"--format={form}", *_REFS).splitlines():
        name, *objects = line.split(" ")
        if name not in without and "commit" in objects:
            _, commit, tree = objects[objects.index("commit") :][:3]
            commits.setdefault(tree, commit)
    return list(commits.values())


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep DVC from warning, once for each revision, of the stages that a run did not reach."""
    logger = getLogger("dvc")
    before = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _running_stage(directory: Path) -> int | None:
    """Return a live process for which DVC has locked inputs or outputs of a stage; it notes them in `rwlock`."""
    try:
        noted = json.loads((directory / _STAGE_LOCKS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(
            f"{directory / _STAGE_LOCKS} is damaged: remove it if no 'dvc' is running here"
        ) from None
    holders = [
        *noted.get("write", {}).values(),
        *(one for many in noted.get("read", {}).values() for one in many),
    ]
    living = (int(one["pid"]) for one in holders if one and Path(f"/proc/{one['pid']}").exists())
    return next(living, None)


def _is_older(path: Path, before: float) -> bool:
    try:
        return os.lstat(path).st_mtime < before
    except FileNotFoundError:
        return False
