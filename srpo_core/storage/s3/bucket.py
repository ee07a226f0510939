"""The objects below a prefix of a bucket: list, read, write, also under conditions, and delete."""

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

from srpo_core.errors import StoreError
from srpo_core.storage.s3.errors import (
    ABSENT,
    ATTEMPTS,
    CONDITION_FAILED,
    CONDITION_UNKNOWN,
    CONFLICT,
    error_code,
    store_errors,
)

# An object that is older and that no version needs was left by a killed publisher.
STALE: Final = timedelta(days=1)
# A copy inside the store goes in parts of this size.
COPY_PART: Final = 256 << 20
CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60


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
        # conditions that the store does not implement, as found by `ignored_conditions`
        self._unknown_conditions: set[str] = set()

    @cached_property
    def client(self) -> Any:
        """The boto3 client. Raises `StoreError` if AWS_ENDPOINT_URL is not a URL."""
        import boto3
        from botocore.config import Config

        # behind a custom endpoint the host name <bucket>.<host> usually does not exist
        custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path" if custom else "auto"},
        )
        try:
            return boto3.session.Session().client("s3", config=config)
        except ValueError as error:
            raise StoreError(f"the store {self.uri}: {error}; check AWS_ENDPOINT_URL") from error

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

    def entries(self, request: str, part: str, below: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of a paginated request; part: the key of the entries in its answer."""
        pages = self.client.get_paginator(request).paginate(Bucket=self.name, Prefix=self.prefix + below)
        for page in pages:
            yield from page.get(part, ())

    def get(self, key: str, **options: str) -> Any:
        """Return the answer to a GET, with the stream `Body`, or None if there is no such object."""
        return self._unless_absent(lambda: self.client.get_object(**self.target(key), **options))

    def modified(self, key: str) -> datetime | None:
        """Return when an object was written, or None if there is none."""
        head = self._unless_absent(lambda: self.client.head_object(**self.target(key)))
        if head is None:
            return None
        modified: datetime = head["LastModified"]
        return modified

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

    def put_if(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object under a condition; False if the condition does not hold.

        If the answer to a write is lost, botocore writes again, and the condition no longer holds. Then the object
        already has the data that was to be written.
        """
        if self.put(key, data, **condition):
            return True
        found = self.get(key)
        return found is not None and found["Body"].read() == data

    def put(self, key: str, data: bytes, **condition: str) -> bool:
        """Write an object, with checksums; False if a condition does not hold."""
        return self.conditionally(
            lambda **known: self.client.put_object(
                **self.target(key),
                Body=data,
                # some stores verify only one of the two
                ChecksumSHA256=b64encode(hashlib.sha256(data).digest()).decode(),
                ContentMD5=b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
                **known,
            ),
            **condition,
        )

    def conditionally(self, request: Callable[..., Any], **condition: str) -> bool:
        """Make a request under a condition; False if it does not hold."""
        from botocore.exceptions import ClientError

        known = {name: value for name, value in condition.items() if name not in self._unknown_conditions}
        for last in (False, False, True):
            try:
                request(**known)
            except ClientError as error:
                if error_code(error) in CONDITION_FAILED:
                    return False
                # with two writers at the same moment S3 asks one of them to try again
                if last or error_code(error) not in CONFLICT:
                    raise
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def ignored_conditions(self) -> Sequence[str]:
        """Test If-None-Match and If-Match; return those that the store does not implement or honour.

        Later writes leave out conditions that it does not implement, because it would refuse such a write.
        """
        key, note = "conditional-writes", b"This store was asked whether it honours conditions.\n"
        tested = {"If-None-Match": {"IfNoneMatch": "*"}, "If-Match": {"IfMatch": f'"{"0" * 32}"'}}
        self.put(key, note)
        return [name for name, condition in tested.items() if self._writes_despite(key, note, condition)]

    def _writes_despite(self, key: str, note: bytes, condition: Mapping[str, str]) -> bool:
        from botocore.exceptions import ClientError

        try:
            return self.put(key, note, **condition)
        except ClientError as error:
            if error_code(error) not in CONDITION_UNKNOWN:
                raise
            self._unknown_conditions |= condition.keys()
            return True

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
