"""Unfinished multipart uploads that another program, such as DVC, has begun in a bucket.

They are listed and aborted with the credentials of that program's own file system (s3fs), because its remote may be in
another account than the release store.
"""

from collections.abc import Collection, Iterator
from logging import getLogger
from typing import Any, Final, NamedTuple

# what s3fs raises: its translations of the store's answers, and botocore's own errors
_NOT_POSSIBLE: Final = "unfinished uploads in s3://%s/%s cannot be %s: %s"

log = getLogger(__name__)


class Upload(NamedTuple):
    """An unfinished upload: the key of its object, and its id in the bucket."""

    key: str
    upload_id: str


def unfinished_uploads(
    filesystem: Any, bucket: str, prefix: str, keys: Collection[str]
) -> set[Upload] | None:
    """List the unfinished uploads of some objects; None, with a warning, if the store does not list them.

    filesystem: an `s3fs.S3FileSystem`; prefix: that all `keys` have.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return {upload for upload in _listed(filesystem, bucket, prefix) if upload.key in keys}
    except (OSError, BotoCoreError, ClientError) as error:
        log.warning(_NOT_POSSIBLE, bucket, prefix, "listed", " ".join(str(error).split()))
        return None


def abort_uploads(filesystem: Any, bucket: str, uploads: Collection[Upload]) -> int:
    """Abort uploads, which frees their parts; return how many. One that has ended meanwhile is skipped."""
    from botocore.exceptions import BotoCoreError, ClientError

    aborted = 0
    for upload in sorted(uploads):
        try:
            filesystem.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=upload.key, UploadId=upload.upload_id
            )
        except FileNotFoundError:  # NoSuchUpload
            continue
        except (OSError, BotoCoreError, ClientError) as error:
            log.warning(_NOT_POSSIBLE, bucket, upload.key, "aborted", " ".join(str(error).split()))
            continue
        aborted += 1
    return aborted


def _listed(filesystem: Any, bucket: str, prefix: str) -> Iterator[Upload]:
    after: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        for entry in page.get("Uploads", ()):
            yield Upload(entry["Key"], entry["UploadId"])
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
