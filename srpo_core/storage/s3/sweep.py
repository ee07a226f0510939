"""Find and delete what killed publishers left in a bucket: objects that no version needs, unfinished uploads."""

from collections.abc import Callable
from datetime import UTC, datetime

from srpo_core.storage.s3.bucket import STALE, Bucket
from srpo_core.storage.s3.upload import abort_upload


def sweep(bucket: Bucket, needed: Callable[[], set[str]], *, delete: bool) -> list[str]:
    """Return the keys of leftovers that are at least a day old; delete them if `delete`.

    needed: reads the digests that versions need now; called again before each deletion.
    """
    digests = needed()
    before = datetime.now(UTC) - STALE
    orphans = [
        entry["Key"].removeprefix(bucket.prefix)
        for entry in bucket.entries("list_objects_v2", "Contents", "objects/")
        if entry["LastModified"] < before and _digest(entry["Key"]) not in digests
    ]
    uploads = [
        entry
        for entry in bucket.entries("list_multipart_uploads", "Uploads", "objects/")
        if entry["Initiated"] < before
    ]
    if delete:
        orphans = [key for key in orphans if _delete_orphan(bucket, key, before, needed)]
        for upload in uploads:
            abort_upload(
                bucket, {"Bucket": bucket.name, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            )
    return [
        *(bucket.prefix + key for key in orphans),
        *(f"{upload['Key']} (unfinished)" for upload in uploads),
    ]


def _delete_orphan(bucket: Bucket, key: str, before: datetime, needed: Callable[[], set[str]]) -> bool:
    """Delete an object unless a publisher needs it since it was listed; return whether it was deleted."""
    modified = bucket.modified(key)
    if modified is None or modified >= before or _digest(key) in needed():
        return False
    bucket.delete(key)
    return True


def _digest(key: str) -> str:
    return key.rpartition("/")[2]
