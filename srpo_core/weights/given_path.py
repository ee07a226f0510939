"""Say what was given in place of the directory of a model: a URL, a repository of a hub, or a single file."""

import re
from pathlib import Path
from typing import Final

from srpo_core.errors import SrpoError
from srpo_core.weights.headers import fault_of, kind_of

# `pathlib` reduces the slashes of a URL to one
_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
# a repository of the hub as its pages name it, and with a revision as some programs take it
_ON_HUB: Final = re.compile(
    r"(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/.+)?)?/?",
    re.IGNORECASE,
)
_AT_REVISION: Final = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)@(?P<revision>[\w./-]+)")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def what_is_missing(path: str) -> str | None:
    """Return what a path is that does not exist here, and what to give, as one line; None if it exists."""
    if Path(path).exists():
        return None
    if url := _URL.match(path):
        return (
            f"{url[1]}://{path[url.end() :]} is a URL: download what it names and give the path of the copy"
        )
    hub = _ON_HUB.fullmatch(path) or (None if _is_under_directory(path) else _AT_REVISION.fullmatch(path))
    repository = hub["name"] if hub else path
    if directory := locked_directory(repository):
        named = f"{path} is" if hub is None else f"{path} names"
        return f"{named} a repository of the hub, in models.lock as {directory}: run 'srpo fetch' and give {directory}"
    if hub:
        return (
            f"{path} names the repository {repository} of the hub: download it and give the directory: "
            f"{_download(repository, hub['revision'])}"
        )
    if _REPOSITORY.fullmatch(path) and not _is_under_directory(path):
        return (
            f"{path} is not here; if it is a repository of the hub, download it and give the directory: "
            f"{_download(path, None)}"
        )
    return f"{path} is missing: check the path"


def _is_under_directory(path: str) -> bool:
    return path.startswith("models/") or Path(path).parent.exists()


def _download(repository: str, revision: str | None) -> str:
    at = f" --revision {revision}" if revision else ""
    return f"hf download {repository}{at} --local-dir models/{repository.partition('/')[2]}"


def locked_directory(repository: str) -> str | None:
    """Return the directory for which models.lock has a repository of the hub, or None."""
    from srpo_core.weights.models_lock import (
        LOCK,
        read_lock,
    )  # imports pydantic, which the command line does not need

    try:
        entries = read_lock() if LOCK.exists() else {}
    except SrpoError:
        return None  # a damaged models.lock is reported where its entries are needed
    return next((name for name, entry in entries.items() if entry.repo == repository), None)


def file_in_place_of_directory(path: Path, needed: str) -> str | None:
    """Return what a single file is that was given in place of a directory, and what to give; None for a directory."""
    if path.is_dir():
        return None
    if fault := fault_of(path):
        return fault
    return f"{path} is {kind_of(path)}: {needed} is needed"
