"""Read an object in blocks, from any byte on; a connection that is cut off is opened again."""

from collections.abc import Callable, Iterator
from typing import Any

from srpo_core.errors import StoreError
from srpo_core.storage.manifest import BLOCK
from srpo_core.storage.s3.bucket import Bucket
from srpo_core.storage.s3.errors import OUTSIDE, error_code


def read_object(
    bucket: Bucket, key: str, start: int, size: int, *, lost: StoreError, wrong: Callable[[int], StoreError]
) -> Iterator[bytes]:
    """Yield the bytes of an object from byte `start` on. Errors are those of botocore and those given.

    A connection that is cut off is opened again where it ended, as long as each of them brings something.

    size: the length that the object should have; lost: raised if there is none; wrong: gives the error for another
    length.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    if start and start >= size:
        return
    while True:
        found = _open(bucket, key, start)
        if found is None:
            raise lost
        body, there = found
        if there != size:
            raise wrong(there)
        begun = start
        try:
            for block in body:
                start += len(block)
                yield block
        except (HTTPClientError, IncompleteReadError):
            if start == begun:
                raise
        else:
            return


def _open(bucket: Bucket, key: str, start: int) -> tuple[Iterator[bytes], int] | None:
    """Return the bytes of an object from `start` on and the length of all of it, or None if there is none."""
    from botocore.exceptions import ClientError

    try:
        answer = bucket.get(key, **({"Range": f"bytes={start}-"} if start else {}))
    except ClientError as error:
        if error_code(error) not in OUTSIDE:
            raise
        head = bucket.head(key)
        return None if head is None else (iter(()), head["ContentLength"])
    if answer is None:
        return None
    total = answer.get("ContentRange", "").rpartition("/")[2]
    if start and not total.isdigit():  # the store ignores ranges and sends everything
        return _without(answer["Body"].iter_chunks(BLOCK), start), answer["ContentLength"]
    return answer["Body"].iter_chunks(BLOCK), int(total) if start else answer["ContentLength"]


def _without(blocks: Any, start: int) -> Iterator[bytes]:
    """Yield blocks of bytes without the first `start` bytes."""
    for block in blocks:
        rest, start = block[start:], max(0, start - len(block))
        if rest:
            yield rest
