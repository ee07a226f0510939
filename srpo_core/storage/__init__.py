"""The release store: versions that never change, and aliases that point to them.

A store is a directory (`SRPO_STORE`, default `store/`) or `s3://bucket/prefix`. It holds the versions of any
number of models, each with aliases of its own. A version appears with all of its files at once or not at all,
and nothing is ever overwritten but an alias.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from srpo_core.errors import StoreError
from srpo_core.storage.directory import DirectoryStore
from srpo_core.storage.manifest import MANIFEST, FileLostError, content_digest, model_of, version_key
from srpo_core.storage.s3 import S3Store

__all__ = [
    "MANIFEST",
    "DirectoryStore",
    "FileLostError",
    "S3Store",
    "Store",
    "content_digest",
    "model_of",
    "open_store",
    "require_conditions",
    "version_key",
]

DEFAULT_STORE: Final = "store"

log = getLogger(__name__)


class Store(Protocol):
    """Versions with their files and manifest, and aliases. Every method raises `StoreError` in one line."""

    uri: str

    def versions(self) -> list[str]:
        """The published versions, sorted by name."""
        ...

    def manifest(self, version: str) -> dict[str, Any]:
        """The manifest of a version: `files` (name: sha256, bytes), `content` and what the publisher added."""
        ...

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Publish `files` (name: local path) as `version`; False when it is there already with the same content.

        A version that is there with another content is an error.
        """
        ...

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of one file of a version from `start` on, in pieces. Raises `FileLostError` when the store has lost it."""
        ...

    def local(self, version: str) -> Path | None:
        """The version's directory when the store keeps it on this machine's file system, else None."""
        ...

    def remove(self, version: str, unless: Callable[[], bool] | None = None) -> bool:
        """Take a version out of sight, ask `unless`, and put it back if that holds; returns whether it went.

        Who points an alias to a version looks at it again afterwards: of the two one sees the other. A version
        that is not there is no error.
        """
        ...

    def aliases(self) -> list[str]:
        """The aliases, each as `<model>/<name>`, sorted."""
        ...

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """What an alias holds, or None, and a token of this state for `write_alias`."""
        ...

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Write an alias if it still is as `token` says (None: absent); False if another moved it meanwhile."""
        ...

    def ignored_conditions(self) -> Sequence[str]:
        """Which of the conditions that keep two writers apart this store does not honour; it is asked."""
        ...

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """What killed publishers left and no version but those in `without` needs; removed if `delete`."""
        ...


def require_conditions(store: Store, *, accepted: bool) -> None:
    """Raise `StoreError` when a store ignores conditional writes, unless that is accepted; then it is said."""
    ignored = store.ignored_conditions()
    if not ignored:
        return
    what = f"the store {store.uri} does not honour conditional writes ({', '.join(ignored)})"
    if not accepted:
        raise StoreError(
            f"{what}, so two writers at once could lose each other's work: use another store, or set "
            "release.unconditional_store: true and write from one place at a time"
        )
    log.warning("%s: write from one place at a time", what)


_SCHEMES: Final[Mapping[str, Callable[[str], Store]]] = MappingProxyType({"s3": S3Store})


def store_uri(uri: str | None = None) -> str:
    """What `open_store` opens, the same from every working directory: a URI, or a directory's whole path."""
    where = uri or os.environ.get("SRPO_STORE") or DEFAULT_STORE
    return where if "://" in where else str(Path(where).absolute())


def open_store(uri: str | None = None) -> Store:
    """The store at `uri`, by default at `SRPO_STORE`, else the directory store/. Nothing is touched yet.

    Raises:
        StoreError: the kind of the URI is unknown, or it names no bucket.
    """
    where = store_uri(uri)
    scheme, separator, _ = where.partition("://")
    if not separator:
        return DirectoryStore(Path(where))
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in sorted(_SCHEMES))
        raise StoreError(f"store {where}: unknown kind {scheme}://; known are a directory and {known}")
    return _SCHEMES[scheme](where)
