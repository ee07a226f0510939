"""Upload files under their digests: skip what is there, resume interrupted uploads, read back where needed."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from logging import getLogger
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import Any, Final
from uuid import uuid4

from srpo_core.errors import StoreError
from srpo_core.runtime.progress import Advance, ignore
from srpo_core.storage.manifest import BLOCK, changed_while_published
from srpo_core.storage.s3.bucket import STALE, Bucket, clock
from srpo_core.storage.s3.errors import UPLOAD_GONE, WRONG_DIGEST, error_code

# A larger file is sent in parts of this size, or in larger parts if there would be too many.
PART: Final = 16 << 20
MAX_PARTS: Final = 10_000
# Number of parts in transfer at once; one more is in memory while it is read.
PARALLEL: Final = 4
# How often an upload is begun that others keep aborting.
UPLOADS: Final = 3
# How often the objects of a version are checked before its manifest is written.
CHECKS: Final = 3

log = getLogger(__name__)


class Uploader:
    """Uploads to objects/<sha256> of a bucket. Errors are those of botocore and `StoreError`."""

    def __init__(self, bucket: Bucket, part_bytes: int) -> None:
        self._bucket = bucket
        self._part_bytes = part_bytes

    def send(self, path: Path, entry: Mapping[str, Any], name: str, advance: Advance = ignore) -> None:
        """Send a file unless an intact object with its digest is there, which is read back to know that.

        A damaged object is replaced, whoever wrote it: it would spoil every release that shares it.

        entry: the `sha256` and `bytes` of the file in the manifest; name: its name in the release, for errors; advance:
        gets the bytes that are in the store.

        Raises:
            StoreError: the file does not have the digest, or the store damages it or keeps losing the upload.
        """
        digest, size = entry["sha256"], entry["bytes"]
        key = f"objects/{digest}"
        found = self._bucket.head(key)
        # renewed long before a sweep could take it for the leftover of a killed publisher
        if found is not None and not _is_recent(found) and not self._bucket.touch(key):
            found = None
        if found is not None:
            if found["ContentLength"] == size and self._reads_back(key, digest):
                advance(size)
                return
            log.warning("the object of %s in %s is damaged: it is replaced", name, self._bucket.uri)
        condition = {} if found is not None else {"IfNoneMatch": "*"}
        if size > self._part_bytes:
            self._send_in_parts(path, digest, name, condition, advance)
            return
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise changed_while_published(name)
        self._bucket.put(key, data, **condition)
        self._require_intact(key, digest, size, name)
        advance(size)

    def is_safe(self, digest: str, size: int) -> bool:
        """Return whether an object is there, as long as it should be, and so new that no sweep removes it soon."""
        found = self._bucket.head(f"objects/{digest}")
        return found is not None and found["ContentLength"] == size and _is_recent(found)

    def require_safe(
        self, version: str, files: Mapping[str, Path], entries: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Check the objects of all files, and send those again that were removed since they were sent.

        An upload may take longer than a day, after which a sweep removes what no version needs.

        Raises:
            StoreError: the store loses an object again and again.
        """

        def is_safe(name: str) -> bool:
            return self.is_safe(entries[name]["sha256"], entries[name]["bytes"])

        for _ in range(CHECKS):
            safe = self._bucket.parallel(is_safe, files)
            lost = [name for name, there in zip(files, safe, strict=True) if not there]
            if not lost:
                return
            for name in lost:
                self.send(files[name], entries[name], name)
        raise StoreError(
            f"the store {self._bucket.uri} loses {lost[0]} of {version} again and again, and nothing was published: look "
            "for a rule or a process that removes objects there"
        )

    def is_intact(self, digest: str, size: int) -> bool:
        """Return whether an object is there with the right length and bytes; it is read to know that."""
        found = self._bucket.head(f"objects/{digest}")
        return (
            found is not None
            and found["ContentLength"] == size
            and self._reads_back(f"objects/{digest}", digest)
        )

    def _send_in_parts(
        self, path: Path, digest: str, name: str, condition: Mapping[str, str], advance: Advance
    ) -> None:
        """Send a file in parts, without those that an interrupted upload has already sent.

        Publishers of the same file share an upload, because its parts are the same. A later one finds it complete.
        """
        from botocore.exceptions import ClientError

        key, size = f"objects/{digest}", path.stat().st_size
        for _ in range(UPLOADS):
            upload, sent = self._open_upload(key)
            try:
                parts = {"Parts": self._send_parts(path, upload, sent, digest, name, advance)}
                self._bucket.conditionally(
                    lambda upload=upload, parts=parts, **known: self._bucket.client.complete_multipart_upload(
                        **upload, MultipartUpload=parts, **known
                    ),
                    **condition,
                )
            except ClientError as error:
                if error_code(error) not in UPLOAD_GONE:
                    raise
                if not self._reads_back(key, digest):
                    continue
            if self._bucket.head(key) is not None:
                self._require_intact(key, digest, size, name)
                return
        raise StoreError(
            f"the store {self._bucket.uri} lost the upload of {name} {UPLOADS} times: try again later"
        )

    def _open_upload(self, key: str) -> tuple[dict[str, str], dict[int, str]]:
        """Return the latest unfinished upload of `key` with the ETags of its parts, or a new upload."""
        client, target = self._bucket.client, self._bucket.target(key)
        begun = [
            entry
            for entry in self._bucket.entries("list_multipart_uploads", "Uploads", key)
            if entry["Key"] == target["Key"]
        ]
        if not begun:
            return target | {"UploadId": client.create_multipart_upload(**target)["UploadId"]}, {}
        upload = target | {"UploadId": max(begun, key=lambda entry: entry["Initiated"])["UploadId"]}
        pages = client.get_paginator("list_parts").paginate(**upload)
        sent = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", ())}
        log.info("resuming an upload of %d parts", len(sent))
        return upload, sent

    def _send_parts(  # what is sent, where to, and who is told
        self,
        path: Path,
        upload: Mapping[str, Any],
        sent: Mapping[int, str],
        digest: str,
        name: str,
        advance: Advance,
    ) -> list[Mapping[str, Any]]:
        """Send the missing parts, `PARALLEL` at once; after a part fails, no other is started."""
        size = max(self._part_bytes, -(-path.stat().st_size // MAX_PARTS))
        seen = hashlib.sha256()
        parts: list[tuple[int, str | Future[str]]] = []
        slots, failed = BoundedSemaphore(PARALLEL), Event()

        def send(number: int, block: bytes, md5: bytes) -> str:
            try:
                answer = self._bucket.client.upload_part(
                    **upload, PartNumber=number, Body=block, ContentMD5=b64encode(md5).decode()
                )
                advance(len(block))
                return str(answer["ETag"])
            except BaseException:
                failed.set()
                raise
            finally:
                slots.release()

        with path.open("rb") as file, ThreadPoolExecutor(PARALLEL) as pool:
            while block := file.read(size):
                seen.update(block)
                md5 = hashlib.md5(block, usedforsecurity=False)
                number = len(parts) + 1
                if sent.get(number, "").strip('"') == md5.hexdigest():
                    parts.append((number, sent[number]))
                    advance(len(block))
                    continue
                slots.acquire()
                if failed.is_set():
                    break  # its error is raised below
                parts.append((number, pool.submit(send, number, block, md5.digest())))
        tags = [(number, tag if isinstance(tag, str) else tag.result()) for number, tag in parts]
        if seen.hexdigest() != digest:
            abort_upload(self._bucket, upload)
            raise changed_while_published(name)
        return [{"PartNumber": number, "ETag": tag} for number, tag in tags]

    @cached_property
    def _store_verifies(self) -> bool:
        """Whether the store refuses bytes that do not have their MD5; tested by a write."""
        from botocore.exceptions import ClientError

        wrong = b64encode(hashlib.md5(b"other bytes", usedforsecurity=False).digest()).decode()
        key = f"probes/{uuid4().hex}"
        try:
            self._bucket.client.put_object(**self._bucket.target(key), Body=b"bytes", ContentMD5=wrong)
        except ClientError as error:
            if error_code(error) not in WRONG_DIGEST:
                raise
            return True
        self._bucket.delete(key)
        log.info("the store %s does not verify checksums: uploads are read back", self._bucket.uri)
        return False

    def _require_intact(self, key: str, digest: str, size: int, name: str) -> None:
        """Check an object that was just sent: its length, and its bytes if the store does not verify them."""
        found = self._bucket.head(key)
        right = found is not None and found["ContentLength"] == size
        if not right or not (self._store_verifies or self._reads_back(key, digest)):
            self._bucket.delete(key)
            raise changed_while_published(name)

    def _reads_back(self, key: str, digest: str) -> bool:
        """Read an object; return whether it is there and has the digest."""
        found = self._bucket.get(key)
        seen = hashlib.sha256()
        for block in () if found is None else found["Body"].iter_chunks(BLOCK):
            seen.update(block)
        return found is not None and seen.hexdigest() == digest


def _is_recent(answer: Any) -> bool:
    """Return whether an object was written lately, by the store's clock; an unknown time counts as long ago."""
    now = clock(answer)
    return now is not None and now - answer["LastModified"] <= STALE / 2


def abort_upload(bucket: Bucket, upload: Mapping[str, Any]) -> None:
    """Free the parts of an upload that will not be finished; a failure is only logged."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        bucket.client.abort_multipart_upload(**upload)
    except (BotoCoreError, ClientError) as error:
        log.warning("parts of %s remain in the bucket: %s", upload["Key"], error)
