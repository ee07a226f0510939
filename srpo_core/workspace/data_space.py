"""Compare the space that a new version of the data takes with what is free, before anything is copied."""

import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.data.sources import require_source, source_format
from srpo_core.errors import DataError
from srpo_core.storage.s3.download import list_sizes
from srpo_core.workspace.data_remote import open_repository
from srpo_core.workspace.data_versions import is_remote, path_of_copy
from srpo_core.workspace.worktree import Workspace

GIGABYTE: Final = 1e9
LARGE: Final = 1 << 20  # bytes; two files of the same size are the same only if they are large
OBJECTS: Final = "files/md5"  # directory of the objects in a remote of DVC
PACKED: Final = ".tar.gz"


@dataclass(frozen=True)
class Copy:
    """A copy of the data that `srpo data` makes: what it is, the directory that it is below, and its size in bytes."""

    what: str
    where: Path
    size: float


def require_space(workspace: Workspace, source: str, format_name: str) -> None:
    """Require that all copies fit on their file systems.

    source: path or s3://bucket/prefix; what an interrupted download of it left is not needed again, nor are files that
    DVC's cache or a remote in a directory has already.

    Raises:
        DataError: a file system has too little space, or the source is missing or has another layout.
        ConfigError: the format is unknown.
        StoreError: the bucket cannot be read.
    """
    if is_remote(source):
        sizes = list_sizes(source)
        target = path_of_copy(source)
        there = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        fetched = [Copy("the download", target, max(0, sum(sizes.values()) - there))]
    else:
        files = source_format(format_name).files(require_source(source, format_name))
        sizes = {str(path): path.stat().st_size for path in files}
        fetched = []
    require_fit(source, [*fetched, *_copies(workspace, sizes)])


def require_fit(source: str, copies: Collection[Copy]) -> None:
    """Raise `DataError` if copies of `source` are larger than what is free on their file systems."""
    by_device: dict[int, list[Copy]] = {}
    for copy in copies:
        if copy.size:
            by_device.setdefault(_existing(copy.where).stat().st_dev, []).append(copy)
    for own in by_device.values():
        where = _existing(own[0].where)
        needed, free = sum(copy.size for copy in own), shutil.disk_usage(where).free
        if needed > free:
            each = " + ".join(f"{_shown(copy.size)} {copy.what}" for copy in own)
            raise DataError(
                f"{source}: its copies need {_shown(needed)} on the file system of {where}, and {_shown(free)} are free "
                f"({each}): free some there, or put SRPO_HOME, DVC's cache ('dvc cache dir') or its remote ('dvc remote "
                "modify') elsewhere"
            )


def _copies(workspace: Workspace, sizes: Mapping[str, int]) -> Iterator[Copy]:
    """Yield the copies of files, by their names and bytes, but the download."""
    yield Copy("in the workspace", workspace.path, sum(sizes.values()))
    # ingest unpacks it into a temporary file; images do not shrink, so it has about the same size
    unpacked = sum(size for name, size in sizes.items() if name.endswith(PACKED))
    yield Copy("to unpack archives", workspace.home, unpacked)
    with open_repository(workspace) as repo:
        cache = repo.cache.local
        if not _is_shared(cache, workspace.path):
            yield Copy("in DVC's cache", Path(cache.path), _unknown(sizes, Path(cache.path)))
        if (remote := _local_remote(repo)) is not None:
            yield Copy("in the DVC remote", remote, _unknown(sizes, remote / OBJECTS))


def _is_shared(cache: Any, workspace: Path) -> bool:
    """Whether files in the workspace and in the cache share their blocks, because they are links or reflinks."""
    from dvc_objects.fs.generic import test_links

    usable = test_links(cache.cache_types, cache.fs, cache.path, cache.fs, str(workspace / "data"))
    return bool(usable) and usable[0] != "copy"


def _local_remote(repo: Any) -> Path | None:
    """Return the directory of the default remote; None if it is none, or if there is no default remote."""
    name = repo.config["core"].get("remote")
    url = str(repo.config["remote"].get(name, {}).get("url", ""))
    return Path(url) if Path(url).is_absolute() else None


def _unknown(sizes: Mapping[str, int], objects: Path) -> int:
    """Add up the sizes of those files of which a directory of objects has none of that size."""
    known = {path.stat().st_size for path in objects.rglob("*") if path.is_file()}
    return sum(size for size in sizes.values() if size < LARGE or size not in known)


def _existing(path: Path) -> Path:
    """Return a path, or the nearest directory above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def _shown(size: float) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE / 10 else f"{size / 1e6:.1f} MB"
