"""Read a data version by its tag, from DVC's cache or the default remote, without touching the checkout.

The files of a version are links into DVC's cache in a temporary directory, so nothing is copied, however large the
data are. If the process is killed, the directory of links remains in the home directory until the next start.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import private_home, user_path
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.errors import ConfigError, SrpoError, StoreError
from srpo_core.runtime import file_lock
from srpo_core.workspace.data_remote import remote_errors
from srpo_core.workspace.data_versions import noted
from srpo_core.workspace.dvc_config import require_config
from srpo_core.workspace.git import git, git_path

PREFIX: Final = "data"
VIEWS: Final = (
    "data-views"  # in the home directory: one directory of links for each process that reads a version
)
_PARTS: Final = 3  # of a tag: data/<name>/<hash>

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataVersion:
    """A data version that can be read.

    home: the directory of files that are not outputs. path: a directory with the version's files. files: the MD5 of
    each file, by its path in the data. ingest: the settings of ingest that read it. findings: what the stage ingest
    counted and set aside when the version was made, by rule; None for a version that was made before this was noted.
    """

    tag: str
    home: Path
    path: Path
    files: Mapping[str, str]
    ingest: Mapping[str, Any]
    findings: Mapping[str, Mapping[str, Any]] | None


@contextmanager
def open_version(checkout: Path, tag: str) -> Iterator[DataVersion]:
    """Fetch what DVC's cache lacks of a version, and yield it.

    Raises:
        ConfigError: there is no such version; the message lists the known ones. Or DVC's configuration is damaged.
        StoreError: neither the cache nor the remote has all of its objects, unchanged.
    """
    top, name = _require_tag(checkout, tag)
    pointer = parse_yaml(git(top, "show", f"{tag}:{PREFIX}/{name}.dvc"), f"{PREFIX}/{name}.dvc")
    directory = str(pointer["outs"][0]["md5"])
    home = private_home(user_path(os.environ.get("SRPO_HOME", top / ".srpo")))
    with _scratch(home / VIEWS) as scratch:
        with _open(top, scratch / "dvc") as repo:
            cache = repo.cache.local
            _fetch(repo, [directory], tag)
            entries = json.loads(Path(cache.oid_to_path(directory)).read_text(encoding="utf-8"))
            files = {entry["relpath"]: entry["md5"] for entry in entries}
            _fetch(repo, sorted(set(files.values())), tag)
            places = {relpath: Path(cache.oid_to_path(oid)).absolute() for relpath, oid in files.items()}
        path = scratch / "files" / name
        for relpath, place in places.items():
            link = path / relpath
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place)
        yield DataVersion(tag, home, path, files, *noted(top, tag))


def known_tags(checkout: Path) -> list[str]:
    """List the tags of data versions, the newest first."""
    listed = git(
        checkout, "for-each-ref", "--sort=-creatordate", "--format=%(refname:short)", f"refs/tags/{PREFIX}"
    )
    return listed.split()


@contextmanager
def _scratch(views: Path) -> Iterator[Path]:
    """Yield a directory that is removed afterwards; those of processes that were killed are removed first."""
    with file_lock.acquire(views / "lock"):
        for other in views.iterdir():
            if other.is_dir() and not file_lock.is_held(other / "lock"):
                shutil.rmtree(other)
        scratch = Path(tempfile.mkdtemp(dir=views))
        held = file_lock.acquire(scratch / "lock")
    try:
        yield scratch
    finally:
        with file_lock.acquire(views / "lock"), held:
            shutil.rmtree(scratch)


def _require_tag(checkout: Path, tag: str) -> tuple[Path, str]:
    """Return the top of the checkout and the name of the data set."""
    try:
        top = git_path(checkout, "rev-parse", "--show-toplevel")
    except SrpoError as error:
        raise ConfigError(f"{checkout} is not a git checkout, so it has no data versions ({error})") from None
    known = known_tags(top)
    if tag not in known:
        shown = f"known are {', '.join(known)}" if known else "there is none: 'srpo data SOURCE' makes one"
        raise ConfigError(
            f"there is no data version {tag!r}: give a tag data/NAME/HASH; {shown} ('git fetch --tags' brings those of "
            "other clones)"
        )
    parts = tag.split("/")
    if len(parts) != _PARTS:
        raise ConfigError(f"the tag {tag!r} is no data version: one has the form data/NAME/HASH")
    return top, parts[1]


def _open(top: Path, site_cache: Path) -> Any:
    from dvc.repo import Repo

    require_config(top)
    return Repo(str(top), config={"core": {"site_cache_dir": str(site_cache)}})


def _fetch(repo: Any, oids: Sequence[str], tag: str) -> None:
    """Fetch objects that the cache lacks; each is hashed, and one with other bytes is not kept."""
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.hash_info import HashInfo

    cache = repo.cache.local
    missing = [oid for oid in oids if not Path(cache.oid_to_path(oid)).is_file()]
    if not missing:
        return
    log.info("fetching %d objects of %s from the default remote", len(missing), tag)
    try:
        remote = repo.cloud.get_remote_odb()
    except DvcException as error:
        raise StoreError(f"{tag} is not in DVC's cache, and {' '.join(str(error).split())}") from None
    with _reasons() as reasons, remote_errors(remote):
        repo.cloud.transfer(remote, cache, [HashInfo("md5", oid) for oid in missing], verify=True)
    lost = [oid for oid in missing if not Path(cache.oid_to_path(oid)).is_file()]
    if lost:
        why = f" ({reasons[0]})" if reasons else ""
        raise StoreError(
            f"the default remote lacks {len(lost)} of {len(missing)} objects of {tag} or has them with other bytes, "
            f"first {lost[0]}{why}: 'srpo data SOURCE' with the same source sends them again"
        )


@contextmanager
def _reasons() -> Iterator[list[str]]:
    """Collect why transfers fail, in one line each; DVC logs the traceback and goes on."""
    reasons: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            reasons.append(" ".join(str(error or record.getMessage()).split()))

    logger, collector = logging.getLogger("dvc_data.hashfile.transfer"), Collector(logging.WARNING)
    before = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.propagate = before
        logger.removeHandler(collector)
