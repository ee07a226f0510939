"""The release store in a bucket: versions, files and aliases."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path, PurePosixPath
from typing import Any

from srpo_core.errors import StoreError
from srpo_core.runtime.progress import progress_bar
from srpo_core.storage.manifest import (
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
    model_of,
    require_file,
    require_same,
    signature_name,
    signatures_key,
    unknown_version,
    version_key,
    wrong_length,
)
from srpo_core.storage.s3.bucket import Bucket
from srpo_core.storage.s3.probe import ignored_conditions, probe
from srpo_core.storage.s3.reading import read_object
from srpo_core.storage.s3.reports import HTML, BucketReports
from srpo_core.storage.s3.sweep import sweep
from srpo_core.storage.s3.upload import PART, Uploader

log = getLogger(__name__)


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
        self.reports = BucketReports(self._bucket)
        self._latest: tuple[str, Mapping[str, Any]] = ("", {})  # the version and manifest that were read last

    def versions(self) -> list[str]:
        """List the published versions, sorted by name."""
        with self._bucket.errors():
            found = [PurePosixPath(key) for key in self._bucket.keys("models/")]
        return sorted(path.parent.name for path in found if path.match(f"*/versions/*/{MANIFEST}"))

    def has(self, version: str) -> bool:
        """Return whether a version is published."""
        with self._bucket.errors():
            return self._bucket.head(_manifest_key(version)) is not None

    def manifests(self, versions: Collection[str]) -> Iterator[tuple[str, dict[str, Any] | StoreError]]:
        """Yield each version with its manifest, or with the error that it cannot be read; several are read at once."""

        def read(version: str) -> tuple[str, dict[str, Any] | StoreError]:
            try:
                return version, self.manifest(version)
            except StoreError as error:
                return version, error

        yield from self._bucket.parallel(read, versions)

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of a version. Raises `StoreError` with the known versions if there is none."""
        manifest = self._manifest(version)
        if manifest is None:
            raise unknown_version(version, self.versions(), self.uri)
        self._latest = (version, manifest)
        return manifest

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Send the files, then the manifest; False if the version exists with the same content.

        Files of an existing version that the store has lost or damaged are sent again, and so is a damaged manifest.

        Raises:
            DamagedFileError: a file was lost or damaged, and the file to send has other bytes.
        """
        self._latest = ("", {})
        damaged = None  # the manifest in the bucket, if it cannot be read
        try:
            if self._is_published(version, manifest):
                self._repair(version, files, manifest)
                return False
        except DamagedManifestError:
            damaged = self._bucket.head(_manifest_key(version))
        with self._bucket.errors():
            with progress_bar(
                "upload files", sum(one["bytes"] for one in manifest["files"].values())
            ) as advance:
                for name, path in files.items():
                    self._uploader.send(path, manifest["files"][name], name, advance)
            self._require_safe(version, files, manifest)
            if damaged is not None:
                self._bucket.put_if(_manifest_key(version), encode_sealed(manifest), IfMatch=damaged["ETag"])
                log.warning(REWRITTEN, version, self.uri)
                return not self._is_published(version, manifest)
            if self._bucket.put_if(_manifest_key(version), encode_sealed(manifest), IfNoneMatch="*"):
                return True
        return not self._is_published(version, manifest)

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of one file of a version from byte `start` on, in blocks."""
        latest, manifest = self._latest  # a version never changes: its manifest is read once for all files
        manifest = manifest if latest == version else self.manifest(version)
        entry = require_file(manifest, name, version, self.uri)
        lost = FileLostError(f"the store {self.uri} has lost {name} of {version}: publish it again")
        wrong = partial(wrong_length, name, version, self.uri, expected=entry["bytes"])
        with self._bucket.errors():
            key = f"objects/{entry['sha256']}"
            yield from read_object(self._bucket, key, start, entry["bytes"], lost=lost, wrong=wrong)

    def local(self, version: str) -> Path | None:
        """Return None: a bucket is not on the file system of this machine."""
        self.manifest(version)
        return None

    def remove(
        self, versions: Collection[str], needed: Callable[[], Collection[str | None]] | None = None
    ) -> list[str]:
        """Delete manifests, so that the versions no longer exist; their files may belong to other versions too."""
        self._latest = ("", {})
        keys = {_manifest_key(version): version for version in versions}
        with self._bucket.errors():
            found = dict(zip(keys, self._bucket.parallel(self._raw, list(keys)), strict=True))
            there = {key: data for key, data in found.items() if data is not None}
            kept: Collection[str | None] = versions  # also if deleting or `needed` raises
            try:
                self._bucket.delete_all(list(there))
                kept = needed() if needed else ()
            finally:
                for key, data in there.items():
                    if keys[key] in kept:
                        self._bucket.put(key, data, IfNoneMatch="*")
            gone = [version for version in versions if version not in kept]
            self._delete_signatures(gone)
        return gone

    def unnamed_files(self, version: str, names: Collection[str]) -> list[str]:
        """List what is below the key of a version and is not its manifest: a bucket keeps the files elsewhere."""
        del names
        with self._bucket.errors():
            return sorted(name for name in self._bucket.keys(f"{version_key(version)}/") if name != MANIFEST)

    def signatures(self, version: str) -> list[bytes]:
        """Return the armored signatures of a version; none is checked."""
        with self._bucket.errors():
            found = self._bucket.parallel(self._raw, self._signature_keys(version))
        return [signature for signature in found if signature is not None]

    def add_signature(self, version: str, signature: bytes) -> None:
        """Keep a signature beside a version; the same one again changes nothing."""
        self.manifest(version)
        with self._bucket.errors():
            self._bucket.put(f"{signatures_key(version)}/{signature_name(signature)}", signature)

    def aliases(self) -> list[str]:
        """List the aliases, each as `<model>/<name>`, sorted."""
        with self._bucket.errors():
            below = self._bucket.prefix + "models/"
            models = [
                entry["Prefix"].removeprefix(below).rstrip("/")
                for entry in self._bucket.entries(
                    "list_objects_v2", "CommonPrefixes", "models/", Delimiter="/"
                )
            ]
            return sorted(
                f"{model}/{key.removesuffix('.json')}"
                for model in models
                for key in self._bucket.keys(f"models/{model}/aliases/")
                if key.endswith(".json")
            )

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

    def page(self) -> str | None:
        """Return the ETag of index.html as token."""
        with self._bucket.errors():
            found = self._bucket.head(PAGE)
            return None if found is None else str(found["ETag"])

    def write_page(self, page: bytes, token: str | None) -> bool:
        """Write index.html if it still has the ETag `token`; False if another process wrote it."""
        condition = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        with self._bucket.errors():
            # so that a browser shows it, and asks the store whether it has changed
            return self._bucket.put_if_known(PAGE, page, condition, ContentType=HTML, CacheControl="no-cache")

    def key_of(self, version: str, name: str, digest: str) -> str:
        """Return the path of a file of a version inside the store: versions share files of the same bytes."""
        del version, name
        return f"objects/{digest}"

    def ignored_conditions(self) -> Sequence[str]:
        """Return which of If-None-Match and If-Match this store does not honour; tested by writes, also in a race."""
        with self._bucket.errors():
            return ignored_conditions(self._bucket)

    def probe(self) -> None:
        """Write an object, read it and delete it. Raises `StoreError` if that is not possible."""
        with self._bucket.errors():
            probe(self._bucket)

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """Return objects that only the versions `without` need, and unfinished uploads; at least a day old.

        While a manifest cannot be read, it is unknown which objects its version needs, and none is returned.
        """
        digests: dict[str, frozenset[str]] = {}  # by version, which never changes

        def needed() -> Collection[str] | None:
            for version, manifest in self.manifests(
                sorted(set(self.versions()) - digests.keys() - set(without))
            ):
                if isinstance(manifest, StoreError):
                    log.warning("no object is removed while a manifest cannot be read: %s", manifest)
                    return None
                digests[version] = frozenset(entry["sha256"] for entry in manifest["files"].values())
            return set().union(*digests.values())

        with self._bucket.errors():
            return sweep(self._bucket, needed, delete=delete)

    def _delete_signatures(self, versions: Collection[str]) -> None:
        """Delete the signatures of versions; one listing for each model."""
        for model in {model_of(version) for version in versions}:
            below = f"models/{model}/signatures/"
            names = (name for name in self._bucket.keys(below) if name.partition("/")[0] in versions)
            self._bucket.delete_all([below + name for name in names])

    def _signature_keys(self, version: str) -> list[str]:
        below = f"{signatures_key(version)}/"
        return [below + name for name in sorted(self._bucket.keys(below)) if name.endswith(".sig")]

    def _raw(self, key: str) -> bytes | None:
        found = self._bucket.get(key)
        return None if found is None else bytes(found["Body"].read())

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

    def _require_safe(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
        """Check all objects once more before a manifest names them; send those again that were removed meanwhile."""
        self._uploader.require_safe(version, files, manifest["files"])

    def _repair(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
        """Send the lost and damaged files of a published version again; its descriptive files may have changed."""
        other = []  # reported when all others are repaired
        with self._bucket.errors():
            for name, entry in self.manifest(version)["files"].items():
                same = manifest["files"].get(name, {}).get("sha256") == entry["sha256"]
                if same and name in files:
                    self._uploader.send(files[name], entry, name)
                elif not self._uploader.is_intact(entry["sha256"], entry["bytes"]):
                    other.append(name)
        if other:
            raise cannot_repair(other, version, self.uri)


def _manifest_key(version: str) -> str:
    return f"{version_key(version)}/{MANIFEST}"
