"""Create a new version of the data: a few large files below data/<name>/, checked, tracked by DVC, and pushed.

A version is a git tag `data/<name>/<12 hex digits>` of a commit that changes only `data/<name>.dvc`. The tag is created
last, so the remote has all files of a tagged version.
"""

import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from srpo_core.config import PARAMS_FILE, write_settings
from srpo_core.data.images import find_images
from srpo_core.errors import ConfigError, DataError, SrpoError, StoreError
from srpo_core.workspace.git import git, run_command
from srpo_core.workspace.reproduce import run_in_workspace
from srpo_core.workspace.worktree import Workspace

SPLITS: Final = ("train", "test")


def collect(source: Path, target: Path) -> None:
    """Copy a directory in the layout of HPDv2 to `target`: its JSON lists, and one tar of images per split.

    A directory of images becomes a tar of sorted members without times or owners, so the same images give the same
    bytes; an archive is copied unchanged. There are few large files because DVC loses files of large trees
    (treeverse/dvc #10977).

    Raises:
        DataError: the source or a part of it is missing, or a split has its images twice.
    """
    if not source.is_dir():
        raise DataError(
            f"{source} is not a directory: give one in the layout of HPDv2 (train.json, train.tar, ...)"
        )
    shutil.rmtree(target, ignore_errors=True)
    lists = [source / f"{split}.json" for split in SPLITS] + sorted(source.glob("benchmark/*.json"))
    for path in lists:
        if not path.is_file():
            raise DataError(f"{path} is missing: the layout of HPDv2 needs it")
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for split in SPLITS:
        _collect_images(source, split, target)


def check(workspace: Workspace, name: str, on_line: Callable[[str], None]) -> None:
    """Run the stage ingest, with the code of the workspace, on data/<name>, and delete its outputs.

    Raises:
        StageError: a record breaks a rule; the message is the error line of ingest.
    """
    write_settings(workspace.path, profile=None, patch={"ingest": {"source": f"data/{name}"}})
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
    git(workspace.path, "add", f"data/{name}.dvc", "data/.gitignore")
    identity = _identity(workspace)
    git(workspace.path, "commit", "--quiet", "--allow-empty", "-m", f"Data: {tag}", environment=identity)
    git(workspace.path, "tag", tag)


def is_tagged(workspace: Workspace, tag: str) -> bool:
    """Whether a version exists."""
    return bool(git(workspace.path, "tag", "--list", tag))


def is_tag_of_head(workspace: Workspace, tag: str) -> bool:
    """Whether the parent of a version's commit, whose code its runs use, is the workspace's commit."""
    return git(workspace.path, "rev-parse", f"{tag}^") == git(workspace.path, "rev-parse", "HEAD")


def require_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is valid as a directory below data/ and as a part of a tag."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigError(f"data name {name!r}: use letters, digits, '-' and '_', for instance hpd")


def _collect_images(source: Path, split: str, target: Path) -> None:
    found = find_images(source, split)
    if found.is_dir():
        _pack(found, target / f"{split}.tar")
    else:
        shutil.copyfile(found, target / found.name)


def _pack(directory: Path, archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(str(path.relative_to(directory)))
            member.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(member, file)


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
    pointer = yaml.safe_load((workspace.path / f"data/{name}.dvc").read_text(encoding="utf-8"))
    return str(pointer["outs"][0]["md5"])


def _dvc(workspace: Workspace, *arguments: str) -> None:
    run_command(["dvc", *arguments], cwd=workspace.path, environment=workspace.environment())


def _identity(workspace: Workspace) -> Mapping[str, str]:
    """Return variables with the identity of the pipeline if git has none of the user."""
    try:
        git(workspace.path, "config", "user.email")
    except SrpoError:
        return {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", "srpo"), ("EMAIL", "srpo@localhost"))
        }
    return {}
