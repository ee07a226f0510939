"""The default DVC remote: compare its objects with a data version, and abort the uploads that killed pushes left there.

DVC's own comparison trusts the name of an object: it finds neither one that was cut off nor one that was altered.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal

from srpo_core.artifacts import read_json, write_json
from srpo_core.config.yaml_text import read_yaml
from srpo_core.errors import StoreError
from srpo_core.runtime import file_lock
from srpo_core.storage.s3.errors import store_errors
from srpo_core.storage.s3.unfinished import Upload, abort_uploads, unfinished_uploads
from srpo_core.workspace.worktree import Workspace

# md5: an MD5 that the store reports for an object is believed; full: the bytes of every object are read
AuditDepth = Literal["md5", "full"]
BLOCK: Final = 1 << 22
S3: Final = "s3"
PUSHES: Final = "pushes"  # in the home directory: one file for each push that runs or was killed
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS: Final = re.compile(r"([0-9a-f]{32})-(\d+)")

log = getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """What the comparison of the remote with the manifest of a data version found.

    objects: how many were compared; read: of how many of them the bytes were read; damaged: those that are missing or
    have another size or other bytes.
    """

    objects: int
    read: int
    damaged: tuple[str, ...]

    def __str__(self) -> str:
        reported = self.objects - self.read
        return (
            f"compared {self.objects} objects by size and MD5 "
            f"({reported} as the store reports it, {self.read} by reading their bytes)"
        )


def audit_remote(workspace: Workspace, name: str, depth: AuditDepth = "md5") -> Audit:
    """Compare each object of data/<name> in the default remote with its size and MD5.

    An MD5 that the store reports (the ETag of S3) is believed if it is the right one and `depth` is `md5`. In all
    other cases the bytes are read: an ETag is no MD5 if the store encrypts, and a directory reports none.
    """
    read, damaged = 0, list[str]()
    with open_repository(workspace) as repo:
        cache, remote = repo.cache.local, repo.cloud.get_remote_odb()
        oids = _objects(cache, directory_hash(workspace, name))
        with remote_errors(remote):
            for oid in oids:
                there, here = remote.oid_to_path(oid), Path(cache.oid_to_path(oid))
                if not remote.fs.isfile(there) or remote.fs.size(there) != here.stat().st_size:
                    damaged.append(oid)
                elif depth == "full" or not _is_reported(remote.fs, there, oid, here):
                    read += 1
                    if _md5_of(remote.fs, there) != _md5(oid):
                        damaged.append(oid)
    return Audit(len(oids), read, tuple(damaged))


def damaged_in_cache(workspace: Workspace, oids: Sequence[str]) -> Iterator[Path]:
    """Yield the files of DVC's cache that are missing or do not have the bytes of their names, among those of `oids`."""
    with open_repository(workspace) as repo:
        for path, oid in ((Path(repo.cache.local.oid_to_path(oid)), oid) for oid in oids):
            if not path.is_file() or _md5_of(repo.cache.local.fs, str(path)) != _md5(oid):
                yield path


def remove_objects(workspace: Workspace, oids: Sequence[str]) -> None:
    """Delete objects from the default remote, if they are there."""
    with open_repository(workspace) as repo:
        remote = repo.cloud.get_remote_odb()
        with remote_errors(remote):
            for path in map(remote.oid_to_path, oids):
                if remote.fs.isfile(path):
                    remote.fs.rm_file(path)


@contextmanager
def without_unfinished_uploads(workspace: Workspace, name: str) -> Iterator[None]:
    """Abort the multipart uploads of data/<name> that the enclosed push began and did not finish.

    What was unfinished before is in a file of the home directory while the push runs. If the push is killed, the file
    remains, and the next push to the same remote aborts what the killed one began. Uploads that were there before are
    left alone: another machine may be sending them. Remotes other than S3 have no such uploads.
    """
    with open_repository(workspace) as repo:
        remote = repo.cloud.get_remote_odb()
        keys = [
            remote.oid_to_path(oid) for oid in _objects(repo.cache.local, directory_hash(workspace, name))
        ]
    if remote.fs.protocol != S3:
        yield
        return
    _end_killed_pushes(workspace, remote)
    before = _uploads(remote, keys)
    if before is None:
        yield
        return
    record = workspace.home / PUSHES / f"{workspace.run_id}.json"
    write_json(record, {"remote": str(remote.path), "keys": keys, "before": sorted(before)})
    try:
        yield
    finally:
        _abort_new(remote, keys, before)
        record.unlink(missing_ok=True)


def open_repository(workspace: Workspace) -> Any:
    """Open the workspace as a `dvc.repo.Repo`, with its own directory of indices."""
    from dvc.repo import Repo

    return Repo(str(workspace.path), config={"core": {"site_cache_dir": str(workspace.site_cache)}})


def directory_hash(workspace: Workspace, name: str) -> str:
    """Return the name of the object of data/<name> as a whole: an MD5 and `.dir`."""
    pointer = read_yaml(workspace.path / f"data/{name}.dvc")
    return str(pointer["outs"][0]["md5"])


def _objects(cache: Any, directory: str) -> list[str]:
    """List the objects of a directory in the cache: its files in order, and the directory itself last."""
    manifest = json.loads(Path(cache.oid_to_path(directory)).read_text(encoding="utf-8"))
    return [*sorted({entry["md5"] for entry in manifest}), directory]


def _md5(oid: str) -> str:
    return oid.partition(".")[0]


def _is_reported(filesystem: Any, there: str, oid: str, here: Path) -> bool:
    """Whether the store reports the right MD5 for an object, also for one that was sent in parts.

    here: the same bytes in the cache.
    """
    if filesystem.protocol != S3:
        return False
    tag = str(filesystem.info(there).get("ETag", "")).strip('"')
    if parts := _MD5_OF_PARTS.fullmatch(tag):
        return parts[1] == _md5_of_parts(here, _part_bytes(filesystem, there), int(parts[2]))
    return _MD5.fullmatch(tag) is not None and tag == _md5(oid)


def _part_bytes(filesystem: Any, there: str) -> int:
    """Ask S3 how long the first part of an object is; some stores answer with the length of all of it."""
    bucket, _, key = there.partition("/")
    return int(filesystem.fs.call_s3("head_object", Bucket=bucket, Key=key, PartNumber=1)["ContentLength"])


def _md5_of_parts(path: Path, part_bytes: int, count: int) -> str:
    """Compute S3's ETag of a file that was sent in parts, without the count: the MD5 of the MD5s of its parts."""
    whole = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for _ in range(count):
            part, left = hashlib.md5(usedforsecurity=False), part_bytes
            while left and (block := file.read(min(BLOCK, left))):
                part.update(block)
                left -= len(block)
            whole.update(part.digest())
    return whole.hexdigest()


def _md5_of(filesystem: Any, path: str) -> str:
    seen = hashlib.md5(usedforsecurity=False)
    with filesystem.open(path, "rb") as file:
        while block := file.read(BLOCK):
            seen.update(block)
    return seen.hexdigest()


def _end_killed_pushes(workspace: Workspace, remote: Any) -> None:
    """Abort what killed pushes to this remote began and did not finish."""
    for record in sorted((workspace.home / PUSHES).glob("*.json")):
        if file_lock.is_held(workspace.home / "runs" / record.stem / "lock"):
            continue
        push: Mapping[str, Any] = read_json(record)
        if push["remote"] == str(remote.path):
            _abort_new(remote, push["keys"], {Upload(*one) for one in push["before"]})
            record.unlink(missing_ok=True)


def _abort_new(remote: Any, paths: Sequence[str], before: set[Upload]) -> None:
    if left := (_uploads(remote, paths) or set()) - before:
        count = abort_uploads(remote.fs.fs, _bucket(remote), left)
        log.info("aborted %d unfinished uploads in s3://%s", count, remote.path)


def _uploads(remote: Any, paths: Sequence[str]) -> set[Upload] | None:
    """List the unfinished uploads of some objects of a remote, by their paths `bucket/key`."""
    bucket = _bucket(remote)
    prefix = str(remote.path).removeprefix(f"{bucket}/")
    keys = {path.removeprefix(f"{bucket}/") for path in paths}
    with remote_errors(remote):  # it reads the user's configuration of AWS
        filesystem = remote.fs.fs
    return unfinished_uploads(filesystem, bucket, prefix, keys)


@contextmanager
def remote_errors(remote: Any) -> Iterator[None]:
    """Raise what the file system of a remote raises as `StoreError`s of one line."""
    where = remote.fs.unstrip_protocol(str(remote.path))
    try:
        with store_errors(where, _bucket(remote)):
            yield
    except OSError as error:
        raise StoreError(
            f"the DVC remote {where} cannot be used ({' '.join(str(error).split())}): check its address with "
            "'dvc remote list', its endpoint and its credentials"
        ) from error


def _bucket(remote: Any) -> str:
    return str(remote.path).partition("/")[0]
