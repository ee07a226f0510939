"""A release store in an S3 bucket, by boto3. Endpoint and credentials come from the AWS_* environment.

objects/<sha256>                                  a file's bytes under their own digest: shared by all versions
models/<model>/versions/<version>/manifest.json   written last: a version without a manifest does not exist
models/<model>/aliases/<name>.json                moved by conditional writes

What a killed publisher leaves is never visible, and its next attempt goes on from it.
"""

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from logging import getLogger
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore, Event
from typing import Any, Final

from srpo_core.errors import StoreError
from srpo_core.storage.manifest import (
    BLOCK,
    MANIFEST,
    FileLostError,
    alias_key,
    damaged_on_the_way,
    decode_alias,
    decode_manifest,
    encode_sealed,
    require_file,
    require_same,
    unknown_version,
    version_key,
)

# A file above this is sent in parts of this size, or of larger ones where there would be too many.
PART: Final = 16 << 20
MOST_PARTS: Final = 10_000
# Parts in memory: those on their way, and the one that is being read.
PARALLEL: Final = 4
# What is older and belongs to no version was left by a killed publisher.
STALE: Final = timedelta(days=1)
# A copy within the store above this goes in parts of this size.
COPIED: Final = 256 << 20
ATTEMPTS: Final = 3
CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60

_LOST: Final = ("PreconditionFailed", "412")
_UNKNOWN: Final = ("NotImplemented", "501")
_CONFLICT: Final = ("ConditionalRequestConflict", "409")
_ABSENT: Final = ("NoSuchKey", "404")
_DENIED: Final = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
_BAD_DIGEST: Final = ("BadDigest", "InvalidDigest")
_WRONG_DIGEST: Final = (*_BAD_DIGEST, "400")
_UPLOAD_GONE: Final = ("NoSuchUpload",)
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
        # conditions that the store does not know, as `ignored_conditions` found
        self._refused: set[str] = set()

    def versions(self) -> list[str]:
        """The published versions, sorted by name."""
        found = (PurePosixPath(key) for key in self._keys("models/"))
        return sorted(path.parent.name for path in found if path.match(f"*/versions/*/{MANIFEST}"))

    def manifest(self, version: str) -> dict[str, Any]:
        """The manifest of a version. Raises `StoreError` when there is none, naming those there are."""
        manifest = self._manifest(version)
        if manifest is None:
            raise unknown_version(version, self.versions(), self.uri)
        return manifest

    def publish(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
        """Send the files, then the manifest; False when the version is there already with the same content.

        Of a version that is there, files that the store has lost are sent again.

        Raises:
            FileLostError: a file was lost, and the one that would be sent has other bytes.
        """
        if self._is_published(version, manifest):
            self._restore(version, files, manifest)
            return False
        with self._errors():
            for name, path in files.items():
                self._send(path, manifest["files"][name]["sha256"], name)
            if self._put_if(self._manifest_key(version), encode_sealed(manifest), IfNoneMatch="*"):
                return True
        return not self._is_published(version, manifest)

    def read(self, version: str, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of one file of a version from `start` on, in pieces."""
        entry = require_file(self.manifest(version), name, version, self.uri)
        if start and start >= entry["bytes"]:
            return
        with self._errors():
            found = self._get(f"objects/{entry['sha256']}", **({"Range": f"bytes={start}-"} if start else {}))
            if found is None:
                raise FileLostError(f"the store {self.uri} has lost {name} of {version}: publish it again")
            yield from found["Body"].iter_chunks(BLOCK)

    def local(self, version: str) -> Path | None:
        """None: a bucket is not on this machine's file system."""
        self.manifest(version)
        return None

    def remove(self, version: str, unless: Callable[[], bool] | None = None) -> bool:
        """Delete the manifest, so that the version does not exist; its files stay for other versions."""
        key = self._manifest_key(version)
        with self._errors():
            found = self._get(key)
            manifest = b"" if found is None else found["Body"].read()
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
            held = found is not None  # also where it cannot be told
            try:
                held = held and unless is not None and unless()
            finally:
                if held:
                    self._put(key, manifest)
            return not held

    def aliases(self) -> list[str]:
        """The aliases, each as `<model>/<name>`, sorted."""
        found = (PurePosixPath(key) for key in self._keys("models/"))
        return sorted(f"{path.parts[0]}/{path.stem}" for path in found if path.match("*/aliases/*.json"))

    def alias(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """What an alias holds, or None, and its ETag as token."""
        key = alias_key(name)
        with self._errors():
            found = self._get(key)
            if found is None:
                return None, None
            return decode_alias(found["Body"].read(), f"{self.uri}/{key}"), found["ETag"]

    def write_alias(self, name: str, value: Mapping[str, Any], token: str | None) -> bool:
        """Write the alias if it still has the ETag `token`; False if another moved it."""
        condition = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        with self._errors():
            return self._put_if(alias_key(name), encode_sealed(value), **condition)

    def ignored_conditions(self) -> Sequence[str]:
        """If-None-Match and If-Match, where this store writes although they do not hold, or does not know them.

        Later writes leave out those that it does not know, as it would take none under them.
        """
        key, note = "conditional-writes", b"This store was asked whether it honours conditions.\n"
        asked = {"If-None-Match": {"IfNoneMatch": "*"}, "If-Match": {"IfMatch": f'"{"0" * 32}"'}}
        with self._errors():
            self._put(key, note)
            return [name for name, condition in asked.items() if self._writes_despite(key, note, condition)]

    def _writes_despite(self, key: str, note: bytes, condition: Mapping[str, str]) -> bool:
        from botocore.exceptions import ClientError

        try:
            return self._put(key, note, **condition)
        except ClientError as error:
            if _code(error) not in _UNKNOWN:
                raise
            self._refused |= condition.keys()
            return True

    def sweep(self, *, without: Collection[str], delete: bool) -> list[str]:
        """Objects that no version but those in `without` names, and unfinished uploads; a day old at least."""
        named: dict[str, frozenset[str]] = {}
        needed = self._needed(without, named)
        before = datetime.now(UTC) - STALE
        with self._errors():
            left = [
                entry["Key"]
                for entry in self._entries("list_objects_v2", "Contents", "objects/")
                if entry["LastModified"] < before and entry["Key"].rpartition("/")[2] not in needed
            ]
            uploads = [
                entry
                for entry in self._entries("list_multipart_uploads", "Uploads", "objects/")
                if entry["Initiated"] < before
            ]
            if delete:
                left = [key for key in left if self._delete_orphan(key, before, without, named)]
            for upload in uploads if delete else ():
                self._abort({"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]})
        return [*left, *(f"{upload['Key']} (unfinished)" for upload in uploads)]

    def _needed(self, without: Collection[str], named: dict[str, frozenset[str]]) -> set[str]:
        """The digests that versions name. named: those of versions read before, as a version never changes."""
        for version in set(self.versions()) - named.keys() - set(without):
            files = self.manifest(version)["files"]
            named[version] = frozenset(entry["sha256"] for entry in files.values())
        return set().union(*named.values())

    def _delete_orphan(
        self, key: str, before: datetime, without: Collection[str], named: dict[str, frozenset[str]]
    ) -> bool:
        """Delete an object unless a publisher has come for it since it was listed; returns whether it did."""
        changed = self._changed(key.removeprefix(self._prefix))
        if changed is None or changed >= before or key.rpartition("/")[2] in self._needed(without, named):
            return False
        self._client.delete_object(Bucket=self._bucket, Key=key)
        return True

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
        return f"{version_key(version)}/{MANIFEST}"

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

    def _restore(self, version: str, files: Mapping[str, Path], manifest: Mapping[str, Any]) -> None:
        """Send again what is lost of a published version; its describing files may be others by now."""
        with self._errors():
            for name, entry in self.manifest(version)["files"].items():
                at_hand = manifest["files"].get(name, {}).get("sha256") == entry["sha256"]
                if at_hand and name in files:
                    self._send(files[name], entry["sha256"], name)
                elif not self._has(f"objects/{entry['sha256']}"):
                    raise FileLostError(
                        f"the store {self.uri} has lost {name} of {version}, and it is not at hand with the same bytes: "
                        "publish from the commit of that version"
                    )

    def _keys(self, below: str) -> list[str]:
        with self._errors():
            found = [entry["Key"] for entry in self._entries("list_objects_v2", "Contents", below)]
        return [key.removeprefix(self._prefix + below) for key in found]

    def _entries(self, request: str, what: str, below: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator(request).paginate(Bucket=self._bucket, Prefix=self._prefix + below)
        for page in pages:
            yield from page.get(what, ())

    def _get(self, key: str, **options: str) -> Any:
        from botocore.exceptions import ClientError

        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **options)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise

    def _has(self, key: str) -> bool:
        return self._changed(key) is not None

    def _changed(self, key: str) -> datetime | None:
        """When an object was written, or None if there is none."""
        from botocore.exceptions import ClientError

        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise
        changed: datetime = head["LastModified"]
        return changed

    def _renew(self, key: str) -> bool:
        """Copy an object onto itself, within the store, so that its age begins anew; False if it is gone."""
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        place = {"Bucket": self._bucket, "Key": self._prefix + key}
        config = TransferConfig(multipart_threshold=COPIED, multipart_chunksize=COPIED)
        try:
            self._client.copy(place, **place, ExtraArgs={"MetadataDirective": "REPLACE"}, Config=config)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return False
            raise
        return True

    def _put_if(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object under a condition; False when the condition does not hold.

        Where the answer to a write is lost, botocore writes again and is told that the condition no longer
        holds: what is there then is what was written.
        """
        if self._put(key, data, **condition):
            return True
        found = self._get(key)
        return found is not None and found["Body"].read() == data

    def _put(self, key: str, data: bytes, **condition: str) -> bool:
        return self._conditionally(
            lambda **known: self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=data,
                # a store may hold what it takes to the one and not to the other
                ChecksumSHA256=b64encode(hashlib.sha256(data).digest()).decode(),
                ContentMD5=b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
                **known,
            ),
            **condition,
        )

    def _conditionally(self, request: Callable[..., Any], **condition: str) -> bool:
        """Make a request under a condition; False when that does not hold."""
        from botocore.exceptions import ClientError

        known = {name: value for name, value in condition.items() if name not in self._refused}
        for last in (False, False, True):
            try:
                request(**known)
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
        """Send a file under its digest unless it is there.

        A publisher that was killed before it read its object back may have left a damaged one: that is
        replaced.
        """
        key = f"objects/{digest}"
        changed = self._changed(key)
        # Long before a sweep could take it for a killed publisher's, it is made young.
        old = changed is not None and datetime.now(UTC) - changed > STALE / 2
        there = self._renew(key) if old else changed is not None
        if there and self._is_intact(key, digest):
            return
        if path.stat().st_size > self._part_bytes:
            self._send_in_parts(path, key, digest, name)
            return
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise damaged_on_the_way(name)
        self._put(key, data, IfNoneMatch="*")
        self._require_intact(key, digest, name)

    def _send_in_parts(self, path: Path, key: str, digest: str, name: str) -> None:
        """Send a file in parts, those that an interrupted upload has sent already left out.

        Publishers of the same file share an upload: its parts are the same. Who comes late finds it done.
        """
        from botocore.exceptions import ClientError

        for _ in range(ATTEMPTS):
            upload, sent = self._open_upload(self._prefix + key)
            try:
                parts = {"Parts": self._send_parts(path, upload, sent, digest, name)}
                self._conditionally(
                    lambda upload=upload, parts=parts, **known: self._client.complete_multipart_upload(
                        **upload, MultipartUpload=parts, **known
                    ),
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if _code(error) not in _UPLOAD_GONE:
                    raise
            if self._has(key):
                self._require_intact(key, digest, name)
                return
        raise StoreError(f"the store {self.uri} keeps losing the upload of {name}: try again later")

    def _open_upload(self, key: str) -> tuple[dict[str, str], dict[int, str]]:
        """The upload of `key` that was begun last, with the ETags of its parts, or a new one."""
        target = {"Bucket": self._bucket, "Key": key}
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key)
        begun = [entry for page in pages for entry in page.get("Uploads", ()) if entry["Key"] == key]
        if not begun:
            return target | {"UploadId": self._client.create_multipart_upload(**target)["UploadId"]}, {}
        upload = target | {"UploadId": max(begun, key=lambda entry: entry["Initiated"])["UploadId"]}
        parts = self._client.get_paginator("list_parts").paginate(**upload)
        sent = {part["PartNumber"]: part["ETag"] for page in parts for part in page.get("Parts", ())}
        log.info("going on with an upload of %d parts", len(sent))
        return upload, sent

    def _send_parts(
        self, path: Path, upload: Mapping[str, Any], sent: Mapping[int, str], digest: str, name: str
    ) -> list[Mapping[str, Any]]:
        """Send the parts that are not there, several at once; at most `PARALLEL` + 1 are in memory.

        After one that fails none is begun.
        """
        size = max(self._part_bytes, -(-path.stat().st_size // MOST_PARTS))
        seen = hashlib.sha256()
        parts: list[tuple[int, str | Future[str]]] = []
        room, failed = BoundedSemaphore(PARALLEL), Event()

        def send(number: int, block: bytes, md5: bytes) -> str:
            try:
                answer = self._client.upload_part(
                    **upload, PartNumber=number, Body=block, ContentMD5=b64encode(md5).decode()
                )
                return str(answer["ETag"])
            except BaseException:
                failed.set()
                raise
            finally:
                room.release()

        with path.open("rb") as file, ThreadPoolExecutor(PARALLEL) as pool:
            while block := file.read(size):
                seen.update(block)
                md5 = hashlib.md5(block, usedforsecurity=False)
                number = len(parts) + 1
                if sent.get(number, "").strip('"') == md5.hexdigest():
                    parts.append((number, sent[number]))
                    continue
                room.acquire()
                if failed.is_set():
                    break  # its error is raised below
                parts.append((number, pool.submit(send, number, block, md5.digest())))
        tags = [(number, tag if isinstance(tag, str) else tag.result()) for number, tag in parts]
        if seen.hexdigest() != digest:
            self._abort(upload)
            raise damaged_on_the_way(name)
        return [{"PartNumber": number, "ETag": tag} for number, tag in tags]

    @cached_property
    def _verifies(self) -> bool:
        """Whether this store refuses bytes that are not those of their MD5; it is asked."""
        from botocore.exceptions import ClientError

        wrong = b64encode(hashlib.md5(b"other bytes", usedforsecurity=False).digest()).decode()
        try:
            self._client.put_object(
                Bucket=self._bucket, Key=f"{self._prefix}verified-writes", Body=b"bytes", ContentMD5=wrong
            )
        except ClientError as error:
            if _code(error) not in _WRONG_DIGEST:
                raise
            return True
        log.info("the store %s does not verify checksums: what is sent is read back", self.uri)
        return False

    def _require_intact(self, key: str, digest: str, name: str) -> None:
        if not self._is_intact(key, digest):
            raise damaged_on_the_way(name)

    def _is_intact(self, key: str, digest: str) -> bool:
        """Read an object back where the store does not verify what it takes; a damaged one is deleted."""
        if self._verifies:
            return True
        seen = hashlib.sha256()
        for block in self._get(key)["Body"].iter_chunks(BLOCK):
            seen.update(block)
        if seen.hexdigest() == digest:
            return True
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        return False

    def _abort(self, upload: Mapping[str, Any]) -> None:
        """Free the parts of an upload that will not be finished."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.abort_multipart_upload(**upload)
        except (BotoCoreError, ClientError) as error:
            log.warning("parts of %s stay in the bucket: %s", upload["Key"], error)

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
        except (boto.ResponseStreamingError, boto.IncompleteReadError) as error:
            raise StoreError(
                f"the store {self.uri} was cut off in the middle of a file ({_line(error)}): try again"
            ) from error
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
        if code in _BAD_DIGEST:
            return (
                f"the store {self.uri} received other bytes than were sent ({code}) and kept none: try again"
            )
        if code in _FULL:
            return (
                f"the store {self.uri} is full ({code}): free space there or set SRPO_STORE to another place"
            )
        return f"the store {self.uri} answers {error.operation_name} with {code}: {message}"


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
