"""Ask a bucket what it honours: writes, deletions, and conditions, also of several writers at the same moment."""

from collections.abc import Callable, Sequence
from threading import Barrier
from typing import Final
from uuid import uuid4

from srpo_core.errors import StoreError
from srpo_core.storage.s3.bucket import Bucket
from srpo_core.storage.s3.errors import CONDITION_UNKNOWN, error_code

NOTE: Final = b"This store was asked what it honours.\n"
# Writers that write one object at the same moment, under a condition that only one of them can meet.
WRITERS: Final = 8

Condition = Callable[[str], dict[str, str]]


def probe(bucket: Bucket) -> None:
    """Write an object, read it, and delete it.

    Raises:
        StoreError: the store does not return what was written, or does not delete.
    """
    key = f"probes/{uuid4().hex}"
    bucket.put(key, NOTE)
    found = bucket.get(key)
    if found is None or found["Body"].read() != NOTE:
        raise StoreError(
            f"the store {bucket.uri} does not return what was just written: it must be consistent, use another store"
        )
    bucket.delete_all([key])
    if bucket.head(key) is not None:
        raise StoreError(
            f"the store {bucket.uri} has an object that was just deleted: allow s3:DeleteObject, or use another store"
        )


def ignored_conditions(bucket: Bucket) -> Sequence[str]:
    """Test If-None-Match and If-Match, one write at a time and several at once; return those that are not honoured.

    Later writes leave out conditions that the store does not implement, because it would refuse such a write.
    """
    key, raced = f"probes/{uuid4().hex}", f"probes/{uuid4().hex}"
    bucket.put(key, NOTE)
    try:
        tested = {"If-None-Match": {"IfNoneMatch": "*"}, "If-Match": {"IfMatch": f'"{"0" * 32}"'}}
        ignored = [name for name, condition in tested.items() if _writes_despite(bucket, key, condition)]
        races: dict[str, Condition] = {
            "If-None-Match": lambda _: {"IfNoneMatch": "*"},
            "If-Match": lambda tag: {"IfMatch": tag},
        }
        for name, condition in races.items():
            if name not in ignored and _race(bucket, raced, condition) > 1:
                ignored.append(f"{name} of simultaneous writers")
            bucket.put(raced, NOTE)  # for the next race, also if this one was left out
    finally:
        bucket.delete_all([key, raced])
    return ignored


def _writes_despite(bucket: Bucket, key: str, condition: dict[str, str]) -> bool:
    from botocore.exceptions import ClientError

    try:
        return bucket.put(key, NOTE, **condition)
    except ClientError as error:
        if error_code(error) not in CONDITION_UNKNOWN:
            raise
        bucket.unknown_conditions |= condition.keys()
        return True


def _race(bucket: Bucket, key: str, condition: Condition) -> int:
    """Let several writers write one object at the same moment; return how many were told that they have written."""
    head = bucket.head(key)
    options = condition("" if head is None else head["ETag"])
    start = Barrier(WRITERS)

    def write(writer: str) -> bool:
        start.wait()
        return bucket.put(key, NOTE + writer.encode(), **options)

    # each writes bytes of its own, or the object of one could have the ETag that another one requires
    return sum(bucket.parallel(write, [uuid4().hex for _ in range(WRITERS)]))
