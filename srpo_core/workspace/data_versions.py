"""Create a new version of the data: a few large files below data/<name>/, checked, tracked by DVC, and pushed.

A version is a git tag `data/<name>/<12 hex digits>` of a commit that changes only `data/<name>.dvc`. The tag is created
last, so the remote has all files of a tagged version.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_core.config import PARAMS_FILE, write_settings
from srpo_core.config.yaml_text import read_yaml
from srpo_core.data.sources import source_format
from srpo_core.errors import ConfigError, DataError, SrpoError, StoreError
from srpo_core.workspace.git import git, missing_identity, run_command, try_git
from srpo_core.workspace.reproduce import run_in_workspace
from srpo_core.workspace.worktree import Workspace


def collect(source: Path, target: Path, format_name: str) -> None:
    """Copy a data set to `target`, which is emptied first, as a few large files of the same format.

    There are few large files because DVC loses files of large trees (treeverse/dvc #10977).

    Raises:
        ConfigError: the format is unknown.
        DataError: the source or a part of it is missing, or has another layout.
    """
    chosen = source_format(format_name)
    if not source.exists():
        raise DataError(f"{source} is missing: give {chosen.layout}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    chosen.collect(source, target)


def check(workspace: Workspace, name: str, ingest: Mapping[str, Any], on_line: Callable[[str], None]) -> None:
    """Run the stage ingest, with the code of the workspace, on data/<name>, and delete its outputs.

    ingest: settings of ingest that differ from those of the workspace, such as the format.

    Raises:
        StageError: a record breaks a rule; the message is the error line of ingest.
    """
    write_settings(workspace.path, profile=None, patch={"ingest": {**ingest, "source": f"data/{name}"}})
    run_in_workspace(
        workspace, "the data are refused", [sys.executable, "-m", "srpo_core", "stage", "ingest"], on_line
    )
    shutil.rmtree(workspace.path / "runs/ingest", ignore_errors=True)
    git(workspace.path, "checkout", "--quiet", "HEAD", "--", str(PARAMS_FILE))


def track(workspace: Workspace, name: str) -> str:
    """Add data/<name> to DVC's cache and return the tag of this version, which may not exist yet.

    Raises:
        SrpoError: DVC failed, for instance because the disk is full.
    """
    _dvc(workspace, "add", "--quiet", f"data/{name}")
    return f"data/{name}/{_directory_hash(workspace, name)[:12]}"


def push(workspace: Workspace, name: str) -> None:
    """Push data/<name> to the default remote, then compare the remote with the manifest, file by file.

    DVC trusts the directory's object and its index as proof that the files are there, so after a killed push it may
    report success and upload nothing. Therefore damaged objects are removed from the remote, together with the
    directory's object and the index, and pushed once more.

    Raises:
        StoreError: the remote still lacks files, or cannot be reached.
    """
    _push_once(workspace, name)
    if missing := list(missing_in_remote(workspace, name)):
        _forget(workspace, [*missing, _directory_hash(workspace, name)])
        _push_once(workspace, name)
        missing = list(missing_in_remote(workspace, name))
    if missing:
        raise StoreError(
            f"the remote lacks {len(missing)} objects of data/{name} after two pushes, first {missing[0]}: check that "
            "the remote is writable ('dvc remote list' names it), then start again"
        )


def missing_in_remote(workspace: Workspace, name: str) -> Iterator[str]:
    """Yield the objects of data/<name> that the default remote lacks, or has with another size."""
    directory = _directory_hash(workspace, name)
    with _repository(workspace) as repo:
        cache, remote = repo.cache.local, repo.cloud.get_remote_odb()
        manifest = json.loads(Path(cache.oid_to_path(directory)).read_text(encoding="utf-8"))
        for oid in [*sorted({entry["md5"] for entry in manifest}), directory]:
            there, here = remote.oid_to_path(oid), Path(cache.oid_to_path(oid))
            if not remote.fs.isfile(there) or remote.fs.size(there) != here.stat().st_size:
                yield oid


def commit(workspace: Workspace, name: str, tag: str) -> None:
    """Commit data/<name>.dvc on the detached HEAD of the workspace and tag it, unless the tag exists."""
    if is_tagged(workspace, tag):
        return
    git(
        workspace.path, "add", "--force", f"data/{name}.dvc", "data/.gitignore"
    )  # also if the user ignores such files
    identity = missing_identity(workspace.path)
    git(workspace.path, "commit", "--quiet", "--allow-empty", "-m", f"Data: {tag}", environment=identity)
    git(workspace.path, "tag", tag)


def is_tagged(workspace: Workspace, tag: str) -> bool:
    """Whether a version exists."""
    return bool(git(workspace.path, "tag", "--list", tag))


def is_tag_of_head(workspace: Workspace, tag: str) -> bool:
    """Whether the parent of a version's commit, whose code its runs use, is the workspace's commit."""
    parent = try_git(
        workspace.path, "rev-parse", "--verify", "--quiet", f"{tag}^"
    )  # a shallow clone may lack it
    return parent is not None and parent.strip() == git(workspace.path, "rev-parse", "HEAD")


def require_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is valid as a directory below data/ and as a part of a tag."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigError(f"data name {name!r}: use letters, digits, '-' and '_', for instance hpd")


def _push_once(workspace: Workspace, name: str) -> None:
    try:
        _dvc(workspace, "push", "--quiet", f"data/{name}.dvc")
    except SrpoError as error:
        raise StoreError(f"data/{name} was not pushed: {error}") from None


def _forget(workspace: Workspace, oids: Sequence[str]) -> None:
    with _repository(workspace) as repo:
        remote = repo.cloud.get_remote_odb()
        for path in map(remote.oid_to_path, oids):
            if remote.fs.isfile(path):
                remote.fs.rm_file(path)
    shutil.rmtree(workspace.site_cache, ignore_errors=True)


def _repository(workspace: Workspace) -> Any:
    from dvc.repo import Repo

    return Repo(str(workspace.path), config={"core": {"site_cache_dir": str(workspace.site_cache)}})


def _directory_hash(workspace: Workspace, name: str) -> str:
    pointer = read_yaml(workspace.path / f"data/{name}.dvc")
    return str(pointer["outs"][0]["md5"])


def _dvc(workspace: Workspace, *arguments: str) -> None:
    run_command(["dvc", *arguments], cwd=workspace.path, environment=workspace.environment())
