"""models.lock: which weights come from a hub, from where exactly, and what their bytes must be."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from srpo_core.artifacts import replacing, sha256
from srpo_core.errors import ArtifactError, ConfigError, SrpoError, pick

LOCK: Final = Path("models.lock")
HUB_NOTES: Final = ".cache"  # where hf_hub_download keeps what it knows of a directory


@dataclass(frozen=True)
class Locked:
    """One entry: a repository of the hub at a revision; files: SHA-256 by name, or None where it is not known."""

    repo: str
    revision: str
    files: Mapping[str, str | None]
    architecture: Mapping[str, Mapping[str, Any]]


def read_lock(path: Path = LOCK) -> Mapping[str, Locked]:
    """The entries by the directory in which their files belong.

    Raises:
        ConfigError: the file is missing or of another form.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: Locked(**entry) for name, entry in entries.items()}
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def missing_files(directory: str, entry: Locked) -> list[str]:
    """Names of the files of an entry that are not there, sorted."""
    return sorted(name for name in entry.files if not (Path(directory) / name).is_file())


def require_locked(path: Path) -> None:
    """Hold a file of weights to its digest, if models.lock here knows one, before it is opened.

    Raises:
        ArtifactError: the file has another digest.
    """
    for directory, entry in read_lock().items() if LOCK.exists() else ():
        for name, digest in entry.files.items():
            if digest and path.absolute() == (Path(directory) / name).absolute() and sha256(path) != digest:
                raise _altered(path)


def _altered(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} does not have the digest of {LOCK}: remove it and run 'srpo fetch' again")


def fetch(directory: str) -> Iterator[str]:
    """Get what is missing of an entry from the hub and check every file; yields a line for each.

    A digest that models.lock did not know is written into it, so that from then on the file is held to it.

    Raises:
        ConfigError: models.lock has no such entry.
        SrpoError: the hub does not answer, does not know the file, or wants a login.
        ArtifactError: a file does not have the digest of models.lock.
    """
    entry = pick(read_lock(), directory, "entry of models.lock")
    for name, digest in entry.files.items():
        path = Path(directory) / name
        had = path.is_file()
        if not had:
            _download(entry, name, Path(directory))
        found = sha256(path)
        if digest is not None and found != digest:
            raise _altered(path)
        if digest is None:
            _lock_digest(directory, name, found)
        checked = "as locked" if digest else f"sha256 {found}, now in {LOCK}"
        yield f"{path}: {'here already' if had else 'fetched'}, {checked}"
    # the hub's notes, of no use once all is here, tell the hour: DVC's digest would be another on each machine
    if (notes := Path(directory) / HUB_NOTES).is_dir():
        shutil.rmtree(notes)


def _lock_digest(directory: str, name: str, digest: str) -> None:
    """Write a digest into models.lock where it says null; comments and order stay."""
    lines = LOCK.read_text(encoding="utf-8").splitlines(keepends=True)
    inside = False
    for place, line in enumerate(lines):
        if line[:1] not in (" ", "#", "\n"):
            inside = line.startswith(f"{directory}:")
        key, colon, value = line.strip().partition(": ")
        if inside and colon and key == name and value == "null":
            lines[place] = line.replace(": null", f": {digest}")
            break
    with replacing(LOCK) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
    if read_lock()[directory].files[name] != digest:
        raise ConfigError(
            f"{LOCK}: write the digest of {directory}/{name} by hand, its line has another form: {digest}"
        )


def _download(entry: Locked, name: str, directory: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        hf_hub_download(entry.repo, name, revision=entry.revision, local_dir=directory)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SrpoError(
            f"{entry.repo}/{name} cannot be fetched from {hub} ({type(error).__name__}: {reason}): check the network, "
            "HF_ENDPOINT, HF_HUB_OFFLINE, and for a gated model its licence and HF_TOKEN"
        ) from error
