"""models.lock: the weights that come from a model hub, with repository, revision and SHA-256 of each file."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import replacing, sha256
from srpo_core.config.yaml_text import read_yaml
from srpo_core.errors import ArtifactError, ConfigError, SrpoError, pick
from srpo_core.weights.headers import fault_of

LOCK: Final = Path("models.lock")
HUB_METADATA: Final = ".cache"  # where hf_hub_download keeps metadata of a directory


@dataclass(frozen=True)
class Locked:
    """An entry: a repository of the hub at a revision.

    files: SHA-256 by name, None if it is not known yet; architecture: by part of a pipeline, its configuration.
    """

    repo: str
    revision: str
    files: Mapping[str, str | None]
    architecture: Mapping[str, Mapping[str, Any]]


def read_lock(path: Path = LOCK) -> Mapping[str, Locked]:
    """Read the entries, by the directory of their files.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    try:
        entries = read_yaml(path)
        found = {name: Locked(**entry) for name, entry in entries.items()}
    except (OSError, ConfigError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    for name, entry in found.items():
        if not isinstance(entry.files, Mapping) or not isinstance(entry.architecture, Mapping):
            raise ConfigError(
                f"{path}: {name}: write NAME: SHA-256, or NAME: null, for each file below files, and architecture: {{}}"
            )
    return found


def missing_files(directory: str, entry: Locked) -> list[str]:
    """List the files of an entry that are missing, sorted."""
    return sorted(name for name in entry.files if not (Path(directory) / name).is_file())


def require_locked(path: Path) -> None:
    """Check a weight file against its digest in models.lock, if it has one, before it is opened.

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
    """Download the missing files of an entry from the hub and check every file; yields one line per file.

    A digest that models.lock lacks is written into it, and the file is checked against it from then on.

    Raises:
        ConfigError: models.lock has no such entry.
        SrpoError: the hub does not answer, has no such file, or requires a login.
        ArtifactError: a file does not have the digest of models.lock, or its header is damaged; such a download is removed.
    """
    entry = pick(read_lock(), directory, "entry of models.lock")
    for name, digest in entry.files.items():
        path = Path(directory) / name
        had = path.is_file()
        if not had:
            _download(entry, name, Path(directory))
        _require_intact(path, downloaded=not had)
        found = sha256(path)
        if digest is not None and found != digest:
            raise _altered(path)
        if digest is None:
            _lock_digest(directory, name, found)
        checked = "as locked" if digest else f"sha256 {found}, now in {LOCK}"
        yield f"{path}: {'here already' if had else 'fetched'}, {checked}"
    # the hub's metadata contain times, so that DVC's digest of the directory would differ between machines
    if (metadata := Path(directory) / HUB_METADATA).is_dir():
        shutil.rmtree(metadata)


def _require_intact(path: Path, *, downloaded: bool) -> None:
    """Raise `ArtifactError` if a file is something else than its name says, or cut."""
    if fault := fault_of(path):
        if downloaded:
            path.unlink()
        again = "run it again" if downloaded else "or remove it and run it again"
        raise ArtifactError(f"{fault}; 'srpo fetch' stopped: {again}")


def _lock_digest(directory: str, name: str, digest: str) -> None:
    """Replace a null in models.lock by a digest; comments and order are kept."""
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
            f"{LOCK}: cannot be edited, its line for {directory}/{name} has another form: write this digest there by hand: {digest}"
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
