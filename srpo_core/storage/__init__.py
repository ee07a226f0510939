"""The release store: versions that never change, and aliases that point to them.

A store is a directory or `s3://bucket/prefix` (`SRPO_STORE`, default `store/`). It contains versions and aliases of
any number of models. A version appears with all of its files at once or not at all, and only aliases are ever
overwritten.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from srpo_core.artifacts import user_path
from srpo_core.credentials import mask_credentials
from srpo_core.errors import StoreError
from srpo_core.storage.directory import DirectoryStore
from srpo_core.storage.manifest import (
    MANIFEST,
    PAGE,
    DamagedFileError,
    FileLostError,
    content_digest,
    is_version,
    listed,
    model_of,
    report_key,
    version_key,
)
from srpo_core.storage.s3 import S3Store

__all__ = [
    "MANIFEST",
    "PAGE",
    "DamagedFileError",
    "DirectoryStore",
    "FileLostError",
    "S3Store",
    "Store",
    "content_digest",
    "is_version",
    "listed",
    "model_of",
    "open_store",
    "report_key",
    "require_conditions",
    "require_publishable",
    "version_key",
]

DEFAULT_STORE: Final = "store"
PARAMS: Final = Path("params.yaml")

log = getLogger(__name__)


class Reports(Protocol):
    """The reports of runs that a store keeps for people, beside its versions. Every method raises `StoreError`."""

    def keep(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Keep the report of a run, `files` (name: local path); an earlier one of the run is replaced."""
        ...

    def remove(self, run_id: str) -> None:
        """Remove the report of a run, if there is one."""
        ...


class Store(Protocol):
    """Versions with their files and manifests, and aliases. Every method raises `StoreError` with a message of one line."""

    uri: str

    @property
    def reports(self) -> Reports:
        """The reports of runs."""
        ...

    def versions(self) -> list[str]:
        """List the published versions, sorted by name."""
        ...

    def has(self, version: str) -> bool:
        """Return whether a version is published."""
        ...

    def manifests(self, versions: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | StoreError]]:
        """Yield each of `versions` with its manifest, or with the error that it cannot be read."""
        ...

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of a version: `files` (name: sha256, bytes), `content`, and what the publisher added."""
        ...

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Publish `files` (name: local path) as `version`; False if it exists with the same content.

        Lost and damaged files of an existing version are replaced by the files at hand that have the same SHA-256.
        A version that exists with other content is an error.
        """
        ...

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file from byte `start` on, in blocks.

        Raises `FileLostError` if the store has lost it, `DamagedFileError` if its length is not that of the manifest.
        """
        ...

    def local(self, version: str) -> Path | None:
        """Return the version's directory if the store is on this machine's file system, else None."""
        ...

    def remove(
        self, versions: Collection[str], needed: Callable[[], Collection[str | None]] | None = None
    ) -> list[str]:
        """Hide versions, then delete those that `needed()` does not return, and restore the others.

        A process that points an alias to a version checks afterwards that the version still exists, so at least one
        of two concurrent processes notices the other. Returns the versions that are gone. Removing a version that
        does not exist is not an error.
        """
        ...

    def unnamed_files(self, version: str, names: Collection[str]) -> list[str]:
        """List what is in the directory of a version and is neither its manifest nor one of its files `names`, sorted."""
        ...

    def signatures(self, version: str) -> list[bytes]:
        """Return the armored signatures of a version; none is checked."""
        ...

    def add_signature(self, version: str, signature: bytes) -> None:
        """Keep a signature beside a version; the same one again changes nothing."""
        ...

    def aliases(self) -> list[str]:
        """List the aliases, each as `<model>/<name>`, sorted."""
        ...

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the value of an alias, or None, and a token of this state for `write_alias`."""
        ...

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Write an alias if it still has the state `token` (None: absent); False if another process moved it."""
        ...

    def page(self) -> str | None:
        """Return a token of the state of the page index.html for `write_page`; None if there is none."""
        ...

    def write_page(self, page: bytes, token: str | None) -> bool:
        """Write index.html if it still has the state `token` (None: absent); False if another process wrote it."""
        ...

    def key_of(self, version: str, name: str, digest: str) -> str:
        """Return the path inside the store of a file of a version, which has this SHA-256 in the manifest."""
        ...

    def ignored_conditions(self) -> Sequence[str]:
        """Test which of the conditions for safe concurrent writes this store does not honour, also in a race."""
        ...

    def probe(self) -> None:
        """Write and delete something, so that a store that refuses it is found before hours of work.

        Raises:
            StoreError: the store cannot be written to, or nothing can be deleted from it.
        """
        ...

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """Return leftovers of killed publishers that no version except those in `without` needs; delete them if `delete`."""
        ...


def require_conditions(store: Store, *, accepted: bool, where: Path = PARAMS) -> None:
    """Raise `StoreError` if a store ignores conditional writes; if that is accepted, only log a warning.

    where: the settings file in which `release.unconditional_store` accepts it, for the message.
    """
    ignored = store.ignored_conditions()
    if not ignored:
        return
    what = f"the store {store.uri} does not honour conditional writes ({', '.join(ignored)})"
    if not accepted:
        raise StoreError(
            f"{what}, so concurrent writers could overwrite each other: use another store, or set "
            f"release.unconditional_store: true in {where} and write from one process at a time"
        )
    log.warning("%s: %s accepts it, so write from one process at a time", what, where)


def require_publishable(store: Store, *, accepted: bool, where: Path = PARAMS) -> None:
    """Test that a store can be written to and honours conditional writes, before the hours of work of a run.

    accepted, where: as for `require_conditions`.

    Raises:
        StoreError: nothing could be published to the store.
    """
    store.probe()
    require_conditions(store, accepted=accepted, where=where)


_SCHEMES: Final[Mapping[str, Callable[[str], Store]]] = MappingProxyType({"s3": S3Store})


def store_uri(uri: str | None = None) -> str:
    """Return the URI or absolute path that `open_store` opens, valid in every working directory."""
    where = uri or os.environ.get("SRPO_STORE") or DEFAULT_STORE
    return where if "://" in where else str(user_path(where))


def open_store(uri: str | None = None) -> Store:
    """Open the store at `uri`, by default at `SRPO_STORE`, else the directory store/. Nothing is read or written yet.

    Raises:
        StoreError: the URI has an unknown scheme, contains credentials, or names no bucket.
    """
    where = store_uri(uri)
    scheme, separator, rest = where.partition("://")
    if not separator:
        return DirectoryStore(Path(where))
    if "@" in rest:
        raise StoreError(
            f"store {mask_credentials(where)}: a URI must not contain credentials, because it is printed and recorded: "
            "write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in sorted(_SCHEMES))
        raise StoreError(f"store {where}: unknown scheme {scheme}://; known are a directory and {known}")
    return _SCHEMES[scheme](where)
