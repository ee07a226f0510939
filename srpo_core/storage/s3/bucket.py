"""The objects below a prefix of a bucket: list, read, write, also under conditions, and delete."""

import hashlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from logging import getLogger
from typing import Any, Final, TypeVar

from srpo_core.errors import StoreError
from srpo_core.storage.s3.client import CONNECTIONS, make_client
from srpo_core.storage.s3.errors import (
    ABSENT,
    BUSY,
    CONDITION_FAILED,
    CONDITION_UNKNOWN,
    CONFLICT,
    UNKNOWN,
    error_code,
    store_errors,
)

# An object that is older, by the store's clock, and that no version needs was left by a killed publisher.
STALE: Final = timedelta(days=1)
# A copy inside the store goes in parts of this size.
COPY_PART: Final = 256 << 20
# The most that S3 deletes with one request.
DELETED_AT_ONCE: Final = 1000
# How often a write is repeated that another writer of the same object was in the way of, and the first pause.
CONFLICTS: Final = 6
CONFLICT_SECONDS: Final = 0.05

T = TypeVar("T")
log = getLogger(__name__)


class Bucket:
    """The objects of `s3://bucket/prefix`; keys are relative to the prefix.

    Errors are those of botocore; wrap calls in `errors()` to raise `StoreError` instead.
    """

    def __init__(self, uri: str) -> None:
        """Parse the URI. Nothing is sent yet.

        Raises:
            StoreError: the URI names no bucket.
        """
        self.name, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self.name:
            raise StoreError(f"store {uri}: no bucket; write s3://bucket/prefix")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{self.name}/{self.prefix}".rstrip("/")
        # conditions that the store does not implement, as found by the probe
        self.unknown_conditions: set[str] = set()
        # whether it accepts x-amz-checksum-sha256; some stores refuse every request with such a header
        self._sha256 = True

    @cached_property
    def client(self) -> Any:
        """The boto3 client, made when it is first used. Raises `StoreError` as `make_client` does."""
        return make_client(self.uri)

    def errors(self) -> AbstractContextManager[None]:
        """Raise errors of botocore as `StoreError`."""
        return store_errors(self.uri, self.name)

    def target(self, key: str) -> dict[str, str]:
        """Return the arguments `Bucket` and `Key` of boto3's calls."""
        return {"Bucket": self.name, "Key": self.prefix + key}

    def keys(self, below: str) -> list[str]:
        """List the keys that start with `below`, without it."""
        entries = self.entries("list_objects_v2", "Contents", below)
        return [entry["Key"].removeprefix(self.prefix + below) for entry in entries]

    def entries(self, request: str, part: str, below: str, **options: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of a paginated request; part: the key of the entries in its answer."""
        pages = self.client.get_paginator(request).paginate(
            Bucket=self.name, Prefix=self.prefix + below, **options
        )
        for page in pages:
            yield from page.get(part, ())

    def get(self, key: str, **options: str) -> Any:
        """Return the answer to a GET, with the stream `Body`, or None if there is no such object."""
        return self._unless_absent(lambda: self.client.get_object(**self.target(key), **options))

    def head(self, key: str) -> Any:
        """Return the answer to a HEAD, with `LastModified` and `ContentLength`, or None if there is no such object."""
        return self._unless_absent(lambda: self.client.head_object(**self.target(key)))

    def now(self) -> datetime:
        """Return the time of the store's clock, by which it dates objects. Raises `StoreError` if it tells none."""
        now = clock(self.client.list_objects_v2(Bucket=self.name, Prefix=f"{self.prefix}objects/", MaxKeys=1))
        if now is None:
            raise StoreError(
                f"the store {self.uri} answers without its time (header Date), so the age of its objects is unknown and "
                "none is removed: check what is between this machine and the store"
            )
        return now

    def touch(self, key: str) -> bool:
        """Copy an object onto itself inside the store, so that it counts as new; False if there is none."""
        from boto3.s3.transfer import TransferConfig

        target = self.target(key)
        config = TransferConfig(multipart_threshold=COPY_PART, multipart_chunksize=COPY_PART)

        def copy() -> bool:
            self.client.copy(target, **target, ExtraArgs={"MetadataDirective": "REPLACE"}, Config=config)
            return True

        return bool(self._unless_absent(copy))

    def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        self.client.delete_object(**self.target(key))

    def delete_all(self, keys: Sequence[str]) -> None:
        """Delete objects, many with each request; one by one if the store has no such request."""
        from botocore.exceptions import ClientError

        for start in range(0, len(keys), DELETED_AT_ONCE):
            batch = keys[start : start + DELETED_AT_ONCE]
            objects = [{"Key": self.prefix + key} for key in batch]
            try:
                answer = self.client.delete_objects(
                    Bucket=self.name, Delete={"Objects": objects, "Quiet": True}
                )
            except ClientError as error:
                if error_code(error) not in UNKNOWN:
                    raise
                self.parallel(self.delete, batch)
                continue
            for fault in answer.get("Errors", ()):
                raise ClientError({"Error": fault}, "DeleteObjects")

    def parallel(self, act: Callable[[str], T], keys: Iterable[str]) -> list[T]:
        """Make one request for each key, several at once; return the answers in order."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(act, keys))

    def put_if(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object under a condition; False if the condition does not hold.

        If the answer to a write is lost, botocore writes again, and the condition no longer holds; or every attempt
        fails, although one was carried out. In both cases the object has the data that was to be written.
        """
        from botocore import exceptions as boto

        lost = (boto.ClientError, boto.ConnectionError, boto.HTTPClientError)
        try:
            return self.put(key, data, **condition) or self._has(key, data)
        except lost as error:
            if isinstance(error, boto.ClientError) and error_code(error) not in BUSY:
                raise
            try:
                done = self._has(key, data)
            except lost:
                raise StoreError(
                    f"the store {self.uri} did not answer the write of {key}, which may have been carried out: check "
                    "with 'srpo releases' when it answers again, then repeat the command if it was not"
                ) from error
            if not done:
                raise
            return True

    def put_if_known(self, key: str, data: bytes, condition: Mapping[str, str], **more: str) -> bool:
        """Write an object under a condition, or without it if the store does not implement it; as `put_if`.

        more: other arguments of the request.
        """
        from botocore.exceptions import ClientError

        try:
            return self.put_if(key, data, **condition, **more)
        except ClientError as error:
            if error_code(error) not in CONDITION_UNKNOWN:
                raise
            self.unknown_conditions |= condition.keys()
            return self.put_if(key, data, **more)

    def _has(self, key: str, data: bytes) -> bool:
        found = self.get(key)
        return found is not None and found["Body"].read() == data

    def put(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object, with checksums; False if a condition does not hold. `condition` may have other arguments of the request, too.

        Some stores verify only one of the two checksums, and some refuse a request with SHA-256: then MD5 is sent alone.
        """
        from botocore.exceptions import ClientError

        md5 = b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        sha256 = b64encode(hashlib.sha256(data).digest()).decode()

        def write(**more: str) -> Any:
            return self.client.put_object(**self.target(key), Body=data, ContentMD5=md5, **more)

        if self._sha256:
            try:
                return self.conditionally(lambda **known: write(ChecksumSHA256=sha256, **known), **condition)
            except ClientError as error:
                if error_code(error) not in UNKNOWN:
                    raise
                refused = error
            try:
                done = self.conditionally(write, **condition)
            except ClientError:
                raise refused from None  # the checksum was not the reason
            self._sha256 = False
            log.info("the store %s refuses SHA-256 checksums: MD5 is sent instead", self.uri)
            return done
        return self.conditionally(write, **condition)

    def conditionally(self, request: Callable[..., Any], **condition: str) -> bool:
        """Make a request under a condition; False if it does not hold."""
        from botocore.exceptions import ClientError

        known = {name: value for name, value in condition.items() if name not in self.unknown_conditions}
        for attempt in range(CONFLICTS + 1):
            try:
                request(**known)
            except ClientError as error:
                if error_code(error) in CONDITION_FAILED:
                    return False
                # with several writers at the same moment S3 asks all but one of them to try again
                if attempt == CONFLICTS or error_code(error) not in CONFLICT:
                    raise
                time.sleep(CONFLICT_SECONDS * 2**attempt)
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    @staticmethod
    def _unless_absent(request: Callable[[], Any]) -> Any:
        """Make a request; None if the store has no such object."""
        from botocore.exceptions import ClientError

        try:
            return request()
        except ClientError as error:
            if error_code(error) in ABSENT:
                return None
            raise


def clock(answer: Any) -> datetime | None:
    """Return the time of the store's clock when it gave an answer, or None if the answer has no such header."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
    except ValueError:
        return None
