"""Download releases: `pull` copies files to a directory of the user's, `fetch` keeps a release in a local cache."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from srpo_core import artifacts
from srpo_core.errors import ConfigError, StoreError
from srpo_core.release.evidence import require_consistent
from srpo_core.release.manifest import release_manifest
from srpo_core.release.pulled import record_pull, require_replaceable
from srpo_core.release.references import resolve
from srpo_core.release.trust import release_state, trust_here
from srpo_core.runtime.download import PART_SUFFIX, download
from srpo_core.runtime.file_lock import acquire
from srpo_core.runtime.progress import Advance, progress_bar
from srpo_core.storage import MANIFEST, Store
from srpo_core.storage.manifest import encode

log = getLogger(__name__)


def pull(
    store: Store, reference: str, *, format_name: str | None, target: Path, force: bool = False
) -> list[Path]:
    """Copy the files of one format of a release, or all files, to `target` and verify each SHA-256.

    Files that are already complete are kept, and interrupted downloads are resumed.

    force: also replace files in `target` that are not from an earlier pull.

    Raises:
        ConfigError: the release has no such format.
        StoreError: there is no such release, a file does not match its manifest, `target` has a file of the same name
            that is not from an earlier pull, or it cannot be written. Or the manifest contradicts the files.
        SignatureError: no allowed signer has signed the release, see `release_state`.
    """
    version = resolve(store, reference)
    manifest = release_manifest(store, version)
    require_consistent(store, version, manifest)
    log.info("%s is %s", version, release_state(store, version, manifest, trust_here()))
    names = list(manifest["files"]) if format_name is None else _files_of(manifest, format_name)
    wanted = {name: str(manifest["files"][name]["sha256"]) for name in names}
    own = wanted | {MANIFEST: hashlib.sha256(encode(manifest)).hexdigest()}
    for name in names:
        _require_no_links(name, target / name)
    try:
        missing = require_replaceable(target, own, force=force)
        record_pull(target, own)
        with progress_bar("download", _bytes_of(manifest, missing)) as advance:
            counted = _Counted(store, advance)
            for name, digest in wanted.items():
                if name in missing:
                    download_file(counted, version, name, digest, target / name)
        artifacts.write_json(target / MANIFEST, manifest)
    except OSError as error:
        raise StoreError(
            f"release {version} cannot be written to {target} ({error}): free space or fix the permissions, then "
            "repeat the command to resume"
        ) from error
    return [target / name for name in names]


def fetch(store: Store, reference: str, *, cache: Path | None = None) -> Path:
    """Return a local directory that holds a release; download it once if the store is a bucket.

    An interrupted download is resumed.

    cache: directory for downloads, by default `releases/` in the project's home.

    Raises:
        StoreError: there is no such release, a file does not match its manifest, or the cache cannot be written.
    """
    version = resolve(store, reference)
    local = store.local(version)
    if local is not None:
        return local
    manifest = store.manifest(version)
    target = (cache or artifacts.home() / "releases") / f"{version}-{manifest['content'][:12]}"
    if target.is_dir():
        return target
    try:
        incomplete = target.with_name(f".fetch-{target.name}")
        # of two processes that want the same release, one downloads and the other finds it complete
        with acquire(incomplete.with_suffix(".lock")):
            if target.is_dir():
                return target
            with progress_bar("download", _bytes_of(manifest, manifest["files"])) as advance:
                counted = _Counted(store, advance)
                for name, entry in manifest["files"].items():
                    download_file(counted, version, name, entry["sha256"], incomplete / name)
            artifacts.write_json(incomplete / MANIFEST, manifest)
            incomplete.rename(target)
    except OSError as error:
        raise StoreError(f"release {version} cannot be stored in {target.parent}: {error}") from error
    return target


def download_file(store: "Readable", version: str, name: str, digest: str, target: Path) -> None:
    """Download one file of a version to `target`, a directory and `name`, and verify its SHA-256.

    Raises:
        StoreError: it does not match, or a symbolic link would lead the file out of the directory.
    """
    _require_no_links(name, target)
    if not download(partial(store.read, version, name), target, digest):
        raise StoreError(f"{name} of {version} does not have its SHA-256: run 'srpo verify', then restore it")


class Readable(Protocol):
    """What `download_file` needs of a store."""

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file of a version from byte `start` on, in blocks."""
        ...


@dataclass(frozen=True)
class _Counted:
    """A store of which every byte that is read is counted, and those before the first one as read earlier."""

    store: Store
    advance: Advance

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file of a version from byte `start` on, in blocks."""
        self.advance(start)
        for block in self.store.read(version, name, start):
            yield block
            self.advance(len(block))


def _require_no_links(name: str, target: Path) -> None:
    """Require that no part of the path `name` below the directory of `target` is a symbolic link."""
    below = [target, *target.parents][: len(PurePosixPath(name).parts)]
    for path in (*below, target.with_name(target.name + PART_SUFFIX)):
        if path.is_symlink():
            raise StoreError(
                f"{path} is a symbolic link, which would lead {name} to {path.readlink()}: remove it, or choose another "
                "directory"
            )


def _bytes_of(manifest: Mapping[str, Any], names: Collection[str]) -> int:
    return sum(entry["bytes"] for name, entry in manifest["files"].items() if name in names)


def _files_of(manifest: Mapping[str, Any], format_name: str) -> list[str]:
    """List the files of a format, with the config.json of its diffusers directory."""
    name = format_name.lower()
    known = manifest["formats"]
    if name not in known:
        raise ConfigError(
            f"release {manifest['version']} has no format {format_name!r}: known are {', '.join(known)}"
        )
    directories = {file.rpartition("/")[0] for file in known[name] if "/" in file}
    configs = [f"{directory}/config.json" for directory in sorted(directories)]
    return [*known[name], *(config for config in configs if config in manifest["files"])]
