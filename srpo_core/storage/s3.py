"""A release store in an S3 bucket, by boto3. Endpoint and credentials come from the AWS_* environment.

objects/<sha256>                   a file's bytes under their own digest: shared by all versions
releases/<version>/manifest.json   written last: a version without a manifest does not exist
aliases/<name>.json                moved by conditional writes

What a killed publisher leaves is never visible, and its next attempt goes on from it.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import StoreError
from srpo_core.storage.manifest import (
    BLOCK,
    MANIFEST,
    FileLostError,
    checked_name,
    damaged_on_the_way,
    decode,
    decode_manifest,
    encode,
    require_file,
    require_same,
    unknown_version,
)

# A file above this is sent in parts of this size.
PART: Final = 64 << 20
ATTEMPTS: Final = 3
CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60

_LOST: Final = ("PreconditionFailed", "412")
_CONFLICT: Final = ("ConditionalRequestConflict", "409")
_ABSENT: Final = ("NoSuchKey", "404")
_DENIED: Final = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
_FULL: Final = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507")

log = getLogger(__name__)


class S3Store:
    """A store at `s3://bucket/prefix`; see `Store` for the methods."""

    def __init__(self, uri: str, *, part_bytes: int = PART) -> None:
        """Open the store at `uri`. Nothing is sent yet.

        Raises:
            StoreError: the URI names no bucket.
        """
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise StoreError(f"store {uri}: no bucket; write s3://bucket/prefix")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._part_bytes = part_bytes

    def versions(self) -> list[str]:
        """The published versions, sorted by name."""
        ends = f"/{MANIFEST}"
        return sorted(key.removesuffix(ends) for key in self._keys("releases/") if key.endswith(ends))

    def manifest(self, version: str) -> dict[str, Any]:
        """The manifest of a version. Raises `StoreError` when there is none, naming those there are."""
        manifest = self._manifest(version)
        if manifest is None:
            raise unknown_version(version, self.versions(), self.uri)
        return manifest

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Send the files, then the manifest; False when the version is there already with the same content."""
        if self._is_published(version, manifest):
            return False
        with self._errors():
            self._warn_without_conditions()
            for name, path in files.items():
                self._send(path, manifest["files"][name]["sha256"], name)
            if self._put_if(self._manifest_key(version), encode(manifest), IfNoneMatch="*"):
                return True
        return not self._is_published(version, manifest)

    def read(self, version: str, name: str) -> Iterator[bytes]:
        """The bytes of one file of a version, in pieces."""
        entry = require_file(self.manifest(version), name, version, self.uri)
        with self._errors():
            found = self._get(f"objects/{entry['sha256']}")
            if found is None:
                raise FileLostError(f"the store {self.uri} has lost {name} of {version}: publish it again")
            yield from found["Body"].iter_chunks(BLOCK)

    def local(self, version: str) -> Path | None:
        """None: a bucket is not on this machine's file system."""
        self.manifest(version)
        return None

    def remove(self, version: str) -> None:
        """Delete the manifest, so that the version does not exist; its files stay for other versions."""
        with self._errors():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + self._manifest_key(version))

    def aliases(self) -> list[str]:
        """The names of the aliases, sorted."""
        return sorted(key.removesuffix(".json") for key in self._keys("aliases/") if key.endswith(".json"))

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """What an alias holds, or None, and its ETag as token."""
        key = f"aliases/{checked_name(name, 'alias')}.json"
        with self._errors():
            found = self._get(key)
            if found is None:
                return None, None
            return decode(found["Body"].read(), f"{self.uri}/{key}"), found["ETag"]

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Write the alias if it still has the ETag `token`; False if another moved it."""
        condition = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        with self._errors():
            return self._put_if(f"aliases/{checked_name(name, 'alias')}.json", encode(value), **condition)

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        # A host name of one's own has no bucket.host beside it.
        own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path" if own else "auto"},
        )
        try:
            return boto3.session.Session().client("s3", config=config)
        except ValueError as error:
            raise StoreError(f"the store {self.uri}: {error}; check AWS_ENDPOINT_URL") from error

    @staticmethod
    def _manifest_key(version: str) -> str:
        return f"releases/{checked_name(version, 'version')}/{MANIFEST}"

    def _manifest(self, version: str) -> dict[str, Any] | None:
        key = self._manifest_key(version)
        with self._errors():
            found = self._get(key)
            return None if found is None else decode_manifest(found["Body"].read(), f"{self.uri}/{key}")

    def _is_published(self, version: str, manifest: Mapping[str, Any]) -> bool:
        existing = self._manifest(version)
        if existing is not None:
            require_same(existing, manifest, version, self.uri)
        return existing is not None

    def _keys(self, below: str) -> list[str]:
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + below
            )
            found = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return [key.removeprefix(self._prefix + below) for key in found]

    def _get(self, key: str) -> Any:
        from botocore.exceptions import ClientError

        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise

    def _has(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return False
            raise
        return True

    def _put_if(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object under a condition; False when the condition does not hold."""
        return self._conditionally(
            lambda: self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=data,
                ChecksumSHA256=b64encode(hashlib.sha256(data).digest()).decode(),
                **condition,
            )
        )

    @staticmethod
    def _conditionally(request: Any) -> bool:
        from botocore.exceptions import ClientError

        for last in (False, False, True):
            try:
                request()
            except ClientError as error:
                if _code(error) in _LOST:
                    return False
                # Two writers at the same moment: S3 asks one to try again.
                if last or _code(error) not in _CONFLICT:
                    raise
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def _send(self, path: Path, digest: str, name: str) -> None:
        """Send a file under its digest unless it is there."""
        key = f"objects/{digest}"
        if self._has(key):
            return
        if path.stat().st_size > self._part_bytes:
            self._send_in_parts(path, key, digest, name)
            return
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise damaged_on_the_way(name)
        self._put_if(key, data, IfNoneMatch="*")

    def _send_in_parts(self, path: Path, key: str, digest: str, name: str) -> None:
        target = {"Bucket": self._bucket, "Key": self._prefix + key}
        upload = target | {"UploadId": self._client.create_multipart_upload(**target)["UploadId"]}
        done = False
        try:
            parts = {"Parts": self._send_parts(path, upload, digest, name)}
            done = self._conditionally(
                lambda: self._client.complete_multipart_upload(
                    **upload, MultipartUpload=parts, IfNoneMatch="*"
                )
            )
        finally:
            if not done:
                self._abort(upload)

    def _send_parts(
        self, path: Path, upload: Mapping[str, Any], digest: str, name: str
    ) -> list[Mapping[str, Any]]:
        parts: list[Mapping[str, Any]] = []
        seen = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(self._part_bytes):
                seen.update(block)
                number = len(parts) + 1
                answer = self._client.upload_part(**upload, PartNumber=number, Body=block)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        if seen.hexdigest() != digest:
            raise damaged_on_the_way(name)
        return parts

    def _abort(self, upload: Mapping[str, Any]) -> None:
        """Free the parts of an upload that will not be finished."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.abort_multipart_upload(**upload)
        except (BotoCoreError, ClientError) as error:
            log.warning("parts of %s stay in the bucket: %s", upload["Key"], error)

    def _warn_without_conditions(self) -> None:
        """Some stores ignore `If-None-Match`; then two publishers at once are not kept apart."""
        key, note = "conditional-writes", b"This store was asked whether it honours If-None-Match.\n"
        if self._put_if(key, note, IfNoneMatch="*") and self._put_if(key, note, IfNoneMatch="*"):
            log.warning("the store %s ignores conditional writes: publish from one place at a time", self.uri)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore import exceptions as boto

        try:
            yield
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise StoreError(
                f"the store {self.uri} needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except boto.ClientError as error:
            raise StoreError(self._refusal(error)) from error
        except (boto.ConnectionError, boto.HTTPClientError) as error:
            raise StoreError(
                f"the store {self.uri} cannot be reached in {ATTEMPTS} attempts ({_line(error)}): "
                "check AWS_ENDPOINT_URL and the network, then try again"
            ) from error
        except boto.BotoCoreError as error:
            raise StoreError(f"the store {self.uri} cannot be used: {_line(error)}") from error

    def _refusal(self, error: Any) -> str:
        code, message = _code(error), error.response.get("Error", {}).get("Message", "")
        if code == "NoSuchBucket":
            return f"the store {self.uri}: there is no bucket {self._bucket}; make it or set SRPO_STORE"
        if code in _DENIED:
            return f"the store {self.uri} refuses these credentials ({code}): check AWS_ACCESS_KEY_ID and its rights"
        if code in _FULL:
            return (
                f"the store {self.uri} is full ({code}): free space there or set SRPO_STORE to another place"
            )
        return f"the store {self.uri} answers {error.operation_name} with {code}: {message}"


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
