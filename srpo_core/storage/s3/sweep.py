"""Find and delete what killed publishers left in a bucket: objects that no version needs, unfinished uploads."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime

from srpo_core.storage.s3.bucket import DELETED_AT_ONCE, STALE, Bucket
from srpo_core.storage.s3.upload import abort_upload

# Reads the digests that versions need now, or None if that cannot be known.
Needed = Callable[[], Collection[str] | None]


def sweep(bucket: Bucket, needed: Needed, *, delete: bool) -> list[str]:
    """Return the keys of leftovers that are at least a day old by the store's clock; delete them if `delete`.

    needed: called again before each deletion of many objects.
    """
    before = bucket.now() - STALE
    digests = needed()
    orphans = [] if digests is None else list(_orphans(bucket, digests, before))
    uploads = [
        entry
        for entry in bucket.entries("list_multipart_uploads", "Uploads", "objects/")
        if entry["Initiated"] < before
    ]
    if delete:
        orphans = _delete(bucket, orphans, before, needed)
        for upload in uploads:
            abort_upload(
                bucket, {"Bucket": bucket.name, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            )
    return [
        *(bucket.prefix + key for key in orphans),
        *(f"{upload['Key']} (unfinished)" for upload in uploads),
    ]


def _orphans(bucket: Bucket, needed: Collection[str], before: datetime, after: str = "") -> Iterator[str]:
    """Yield the keys of old objects that no version needs, in order, from the key that follows `after`."""
    options = {"StartAfter": bucket.prefix + after} if after else {}
    for entry in bucket.entries("list_objects_v2", "Contents", "objects/", **options):
        if entry["LastModified"] < before and entry["Key"].rpartition("/")[2] not in needed:
            yield entry["Key"].removeprefix(bucket.prefix)


def _delete(bucket: Bucket, orphans: list[str], before: datetime, needed: Needed) -> list[str]:
    """Delete orphans unless a publisher has renewed or needs them since they were listed; return the deleted ones."""
    deleted: list[str] = []
    for start in range(0, len(orphans), DELETED_AT_ONCE):
        batch = orphans[start : start + DELETED_AT_ONCE]
        digests = needed()
        if digests is None:
            break
        still = []
        for key in _orphans(bucket, digests, before, after=batch[0][:-1]):  # listed in order
            if key > batch[-1]:
                break
            still.append(key)
        batch = sorted({*batch} & {*still})
        bucket.delete_all(batch)
        deleted += batch
    return deleted
