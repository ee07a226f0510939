"""A release store in a directory.

models/<model>/versions/<version>/   all files of a version and manifest.json; created by one rename
models/<model>/signatures/<version>/ signatures of the version's manifest, each a file that is written once
models/<model>/aliases/<name>.json   replaced by one rename, under a lock
reports/<run>/                       report and grid of a run, for people
index.html                           the page of the store, replaced by one rename, under a lock
.incoming/                           files being written; the next publisher removes what killed ones left
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from logging import getLogger
from pathlib import Path, PurePosixPath
from typing import Any

from srpo_core.errors import StoreError
from srpo_core.runtime.progress import progress_bar
from srpo_core.storage.files import (
    copy_file,
    disk_errors,
    has_digest,
    read_if_present,
    sync_directories,
    sync_directory,
    write_file,
)
from srpo_core.storage.incoming import Incoming, restore
from srpo_core.storage.manifest import (
    BLOCK,
    MANIFEST,
    PAGE,
    REWRITTEN,
    DamagedManifestError,
    FileLostError,
    alias_key,
    cannot_repair,
    decode_alias,
    decode_manifest,
    encode_sealed,
    listed,
    require_file,
    require_same,
    signature_name,
    signatures_key,
    unknown_version,
    version_key,
    wrong_length,
)
from srpo_core.storage.reports import DirectoryReports
from srpo_core.storage.rewriting import replace_file, replace_if, rewrite, state_of

log = getLogger(__name__)


class DirectoryStore:
    """A store in a directory of a local or network file system; see `Store` for the methods."""

    def __init__(self, root: Path) -> None:
        """Open the store at `root`. The first publication creates the directory."""
        self._root = root.absolute()
        self.uri = str(self._root)
        self._models = self._root / "models"
        self._incoming = Incoming(self._root / ".incoming", self._root / ".incoming.lock")
        self.reports = DirectoryReports(self._root, self._incoming)
        self._latest: tuple[str, Mapping[str, Any]] = ("", {})  # the version and manifest that were read last

    def versions(self) -> list[str]:
        """List the published versions, sorted by name. Raises `StoreError` if the root is a file."""
        if self._root.is_file():
            raise StoreError(f"the store {self.uri} is a file: point SRPO_STORE to a directory")
        with self._errors("cannot be listed"):
            found = (path for path in self._models.glob("*/versions") if path.is_dir())
            return sorted(
                entry.name
                for path in found
                for entry in os.scandir(path)
                if os.path.isfile(os.path.join(entry.path, MANIFEST))  # noqa: PTH113, PTH118  # 10,000 versions
            )

    def has(self, version: str) -> bool:
        """Return whether a version is published."""
        with self._errors(f"cannot read {version}"):
            return (self._root / version_key(version) / MANIFEST).is_file()

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of a version. Raises `StoreError` with the known versions if there is none."""
        manifest = self._manifest(version)
        if manifest is None:
            raise unknown_version(version, self.versions(), self.uri)
        self._latest = (version, manifest)
        return manifest

    def manifests(self, versions: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | StoreError]]:
        """Yield each version with its manifest, or with the error that it cannot be read."""
        for version in versions:
            try:
                yield version, self.manifest(version)
            except StoreError as error:
                yield version, error

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Copy the files, sync, and rename into place; False if the version exists with the same content.

        Files of an existing version that are lost or damaged are replaced, and so is a damaged manifest.
        """
        self._latest = ("", {})
        try:
            if self._is_published(version, manifest):
                self._repair(version, files, manifest)
                return False
        except DamagedManifestError:
            with self._errors(f"cannot write {version} again"):
                rewrite(self._root / version_key(version), self._incoming, files, manifest)
            log.warning(REWRITTEN, version, self.uri)
            return False
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        what = f"cannot store {version} ({size / 1e6:.1f} MB); nothing was published"
        with (
            self._errors(what),
            self._incoming.new_directory() as partial,
            progress_bar("copy files", size) as advance,
        ):
            for name, path in files.items():
                copy_file(path, partial / name, manifest["files"][name]["sha256"], name, advance)
            write_file(partial / MANIFEST, encode_sealed(manifest))
            sync_directories(partial)
            return self._move_into_place(partial, version, manifest)

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file of a version from byte `start` on, in blocks."""
        latest, manifest = self._latest  # a version never changes: its manifest is read once for all files
        manifest = manifest if latest == version else self.manifest(version)
        entry = require_file(manifest, name, version, self.uri)
        path = self._root / version_key(version) / name
        if not path.is_file():
            raise FileLostError(
                f"the store {self.uri} has lost {name} of {version}: restore it from a backup, or publish it again"
            )
        with self._errors(f"cannot read {name} of {version}"), path.open("rb") as file:
            if (size := path.stat().st_size) != entry["bytes"]:
                raise wrong_length(name, version, self.uri, size, entry["bytes"])
            file.seek(start)
            while block := file.read(BLOCK):
                yield block

    def local(self, version: str) -> Path | None:
        """Return the version's directory."""
        self.manifest(version)
        return self._root / version_key(version)

    def remove(
        self, versions: Collection[str], needed: Callable[[], Collection[str | None]] | None = None
    ) -> list[str]:
        """Hide versions, each by one rename, then delete them, or restore the needed ones by another rename."""
        self._latest = ("", {})
        with self._errors(f"cannot remove {listed(versions)}"), self._incoming.new_directory() as hidden:
            hid: list[str] = []
            kept: Collection[str | None] = hid  # also if hiding or `needed` raises
            try:
                for version in versions:
                    with suppress(FileNotFoundError):  # it does not exist
                        (self._root / version_key(version)).rename(hidden / version)
                        hid.append(version)
                kept = needed() if needed else ()
            finally:
                for version in hid:
                    if version in kept:
                        restore(hidden / version, self._root / version_key(version))
            gone = [version for version in versions if version not in kept]
            for version in gone:
                shutil.rmtree(self._root / signatures_key(version), ignore_errors=True)
            return gone

    def unnamed_files(self, version: str, names: Collection[str]) -> list[str]:
        """List what is in the directory of a version and is neither its manifest nor one of its files `names`, sorted."""
        named = {MANIFEST, *names}
        directory = self._root / version_key(version)
        needed = {str(parent) for name in named for parent in PurePosixPath(name).parents}
        with self._errors(f"cannot list {version}"):
            found = {str(path.relative_to(directory)) for path in directory.rglob("*")}
        return sorted(found - named - needed)

    def signatures(self, version: str) -> list[bytes]:
        """Return the armored signatures of a version; none is checked."""
        with self._errors(f"cannot read the signatures of {version}"):
            return [
                path.read_bytes() for path in sorted((self._root / signatures_key(version)).glob("*.sig"))
            ]

    def add_signature(self, version: str, signature: bytes) -> None:
        """Keep a signature beside a version; the same one again changes nothing."""
        self.manifest(version)
        target = self._root / signatures_key(version) / signature_name(signature)
        with (
            self._errors(f"cannot sign {version}; it was not signed"),
            self._incoming.new_directory() as partial,
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(partial / target.name, signature)
            (partial / target.name).replace(target)
            sync_directory(target.parent)

    def aliases(self) -> list[str]:
        """List the aliases, each as `<model>/<name>`, sorted."""
        with self._errors("cannot be listed"):
            found = self._models.glob("*/aliases/*.json")
            return sorted(f"{path.parents[1].name}/{path.stem}" for path in found)

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the value of an alias, or None, and the digest of its file as token."""
        path = self._root / alias_key(name)
        with self._errors(f"cannot read the alias {name}"):
            data = read_if_present(path)
        if data is None:
            return None, None
        return decode_alias(data, str(path)), hashlib.sha256(data).hexdigest()

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Replace the alias file if it still has the digest `token`; False if another process moved it."""
        with self._errors(f"cannot move the alias {name}; it was not moved"):
            lock, path = self._root / ".aliases.lock", self._root / alias_key(name)
            return replace_if(self._incoming, lock, path, encode_sealed(value), token)

    def page(self) -> str | None:
        """Return the digest of index.html as token."""
        with self._errors(f"cannot read {PAGE}"):
            return state_of(self._root / PAGE)

    def write_page(self, page: bytes, token: str | None) -> bool:
        """Replace index.html if it still has the digest `token`; False if another process wrote it."""
        with self._errors(f"cannot write {PAGE}"):
            return replace_if(self._incoming, self._root / ".page.lock", self._root / PAGE, page, token)

    def key_of(self, version: str, name: str, digest: str) -> str:
        """Return the path of a file of a version inside the store."""
        del digest
        return f"{version_key(version)}/{name}"

    def ignored_conditions(self) -> Sequence[str]:
        """Return nothing: a lock file serializes the writers."""
        return ()

    def probe(self) -> None:
        """Write, rename and delete a file. Raises `StoreError` if that fails; a store that is not there is not made."""
        if self._root.exists():
            with self._errors("cannot be written to"), self._incoming.new_directory() as partial:
                write_file(partial / "probe", b"This store was asked whether it can be written to.\n")
                (partial / "probe").replace(partial / "renamed")
                (partial / "renamed").unlink()
            return
        there = next(path for path in self._root.parents if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            what = "not writable" if there.is_dir() else "a file"
            raise StoreError(
                f"the store {self.uri} cannot be made, because {there} is {what}: set SRPO_STORE"
            )

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """Return what killed publishers left in .incoming; nothing while another publisher is active."""
        del without  # versions in a directory share no files
        with self._errors("cannot be cleaned"):
            return [str(path.relative_to(self._root)) for path in self._incoming.left(delete=delete)]

    def _manifest(self, version: str) -> dict[str, Any] | None:
        path = self._root / version_key(version) / MANIFEST
        with self._errors(f"cannot read {version}"):
            data = read_if_present(path)
        return None if data is None else decode_manifest(data, str(path))

    def _is_published(self, version: str, manifest: Mapping[str, Any]) -> bool:
        existing = self._manifest(version)
        if existing is not None:
            require_same(existing, manifest, version, self.uri)
        return existing is not None

    def _repair(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
        """Replace the lost and damaged files of a published version by the files at hand, if they are the same."""
        directory, other = self._root / version_key(version), []
        for name, entry in self.manifest(version)["files"].items():
            if has_digest(directory / name, entry["sha256"], entry["bytes"]):
                continue
            if name not in files or manifest["files"].get(name, {}).get("sha256") != entry["sha256"]:
                other.append(name)  # reported when all others are repaired
                continue
            with self._errors(f"cannot repair {name} of {version}"):
                replace_file(self._incoming, files[name], directory, name, entry["sha256"])
            log.warning("repaired %s of %s in %s", name, version, self.uri)
        if other:
            raise cannot_repair(other, version, self.uri)

    def _move_into_place(self, partial: Path, version: str, manifest: Mapping[str, Any]) -> bool:
        target = self._root / version_key(version)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # another publisher was faster: a rename never replaces a directory that is not empty
            return not self._is_published(version, manifest)
        sync_directory(target.parent)
        return True

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return disk_errors(self.uri, what)
