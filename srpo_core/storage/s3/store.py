"""The release store in a bucket: versions, files and aliases."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from srpo_core.storage.manifest import (
    BLOCK,
    MANIFEST,
    FileLostError,
    alias_key,
    decode_alias,
    decode_manifest,
    encode_sealed,
    require_file,
    require_same,
    unknown_version,
    version_key,
)
from srpo_core.storage.s3.bucket import Bucket
from srpo_core.storage.s3.sweep import sweep
from srpo_core.storage.s3.upload import PART, Uploader


class S3Store:
    """A store at `s3://bucket/prefix`; see `Store` for the methods."""

    def __init__(self, uri: str, *, part_bytes: int = PART) -> None:
        """Open the store at `uri`. Nothing is sent yet.

        part_bytes: larger files are sent in parts of this size.

        Raises:
            StoreError: the URI names no bucket.
        """
        self._bucket = Bucket(uri)
        self._uploader = Uploader(self._bucket, part_bytes)
        self.uri = self._bucket.uri

    def versions(self) -> list[str]:
        """List the published versions, sorted by name."""
        with self._bucket.errors():
            found = [PurePosixPath(key) for key in self._bucket.keys("models/")]
        return sorted(path.parent.name for path in found if path.match(f"*/versions/*/{MANIFEST}"))

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of a version. Raises `StoreError` with the known versions if there is none."""
        manifest = self._manifest(version)
        if manifest is None:
            raise unknown_version(version, self.versions(), self.uri)
        return manifest

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Send the files, then the manifest; False if the version exists with the same content.

        Files of an existing version that the store has lost are sent again.

        Raises:
            FileLostError: a file was lost, and the file to send has other bytes.
        """
        if self._is_published(version, manifest):
            self._restore(version, files, manifest)
            return False
        with self._bucket.errors():
            for name, path in files.items():
                self._uploader.send(path, manifest["files"][name]["sha256"], name)
            if self._bucket.put_if(_manifest_key(version), encode_sealed(manifest), IfNoneMatch="*"):
                return True
        return not self._is_published(version, manifest)

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file of a version from byte `start` on, in blocks."""
        entry = require_file(self.manifest(version), name, version, self.uri)
        if start and start >= entry["bytes"]:
            return
        with self._bucket.errors():
            options = {"Range": f"bytes={start}-"} if start else {}
            found = self._bucket.get(f"objects/{entry['sha256']}", **options)
            if found is None:
                raise FileLostError(f"the store {self.uri} has lost {name} of {version}: publish it again")
            yield from found["Body"].iter_chunks(BLOCK)

    def local(self, version: str) -> Path | None:
        """Return None: a bucket is not on the file system of this machine."""
        self.manifest(version)
        return None

    def remove(self, version: str, unless: Callable[[], bool] | None = None) -> bool:
        """Delete the manifest, so that the version no longer exists; its files may belong to other versions too."""
        key = _manifest_key(version)
        with self._bucket.errors():
            found = self._bucket.get(key)
            manifest = b"" if found is None else found["Body"].read()
            self._bucket.delete(key)
            restore = found is not None  # also if `unless` raises
            try:
                restore = restore and unless is not None and unless()
            finally:
                if restore:
                    self._bucket.put(key, manifest)
            return not restore

    def aliases(self) -> list[str]:
        """List the aliases, each as `<model>/<name>`, sorted."""
        with self._bucket.errors():
            found = [PurePosixPath(key) for key in self._bucket.keys("models/")]
        return sorted(f"{path.parts[0]}/{path.stem}" for path in found if path.match("*/aliases/*.json"))

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the value of an alias, or None, and its ETag as token."""
        key = alias_key(name)
        with self._bucket.errors():
            found = self._bucket.get(key)
            if found is None:
                return None, None
            return decode_alias(found["Body"].read(), f"{self.uri}/{key}"), found["ETag"]

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Write the alias if it still has the ETag `token`; False if another process moved it."""
        condition = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        with self._bucket.errors():
            return self._bucket.put_if(alias_key(name), encode_sealed(value), **condition)

    def ignored_conditions(self) -> Sequence[str]:
        """Return which of If-None-Match and If-Match this store does not honour; tested by writes."""
        with self._bucket.errors():
            return self._bucket.ignored_conditions()

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """Return objects that only the versions `without` need, and unfinished uploads; at least a day old."""
        digests: dict[str, frozenset[str]] = {}  # by version, which never changes

        def needed() -> set[str]:
            for version in set(self.versions()) - digests.keys() - set(without):
                files = self.manifest(version)["files"]
                digests[version] = frozenset(entry["sha256"] for entry in files.values())
            return set().union(*digests.values())

        with self._bucket.errors():
            return sweep(self._bucket, needed, delete=delete)

    def _manifest(self, version: str) -> dict[str, Any] | None:
        key = _manifest_key(version)
        with self._bucket.errors():
            found = self._bucket.get(key)
            return None if found is None else decode_manifest(found["Body"].read(), f"{self.uri}/{key}")

    def _is_published(self, version: str, manifest: Mapping[str, Any]) -> bool:
        existing = self._manifest(version)
        if existing is not None:
            require_same(existing, manifest, version, self.uri)
        return existing is not None

    def _restore(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
        """Send the lost files of a published version again; its descriptive files may have changed since then."""
        with self._bucket.errors():
            for name, entry in self.manifest(version)["files"].items():
                same = manifest["files"].get(name, {}).get("sha256") == entry["sha256"]
                if same and name in files:
                    self._uploader.send(files[name], entry["sha256"], name)
                elif self._bucket.modified(f"objects/{entry['sha256']}") is None:
                    raise FileLostError(
                        f"the store {self.uri} has lost {name} of {version}, and your file has other bytes: publish "
                        "from the commit of that version"
                    )


def _manifest_key(version: str) -> str:
    return f"{version_key(version)}/{MANIFEST}"
