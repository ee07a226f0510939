"""Translate errors of boto3 into `StoreError`s of one line, and name the error codes that the store handles."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from srpo_core.errors import StoreError

ATTEMPTS: Final = 3

CONDITION_FAILED: Final = ("PreconditionFailed", "412")
CONDITION_UNKNOWN: Final = ("NotImplemented", "501")
CONFLICT: Final = ("ConditionalRequestConflict", "409")
ABSENT: Final = ("NoSuchKey", "404")
UPLOAD_GONE: Final = ("NoSuchUpload",)
_BAD_DIGEST: Final = ("BadDigest", "InvalidDigest")
WRONG_DIGEST: Final = (*_BAD_DIGEST, "400")
_DENIED: Final = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
_FULL: Final = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507")


def error_code(error: Any) -> str:
    """Return the code of a botocore `ClientError`; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def store_errors(uri: str, bucket: str) -> Iterator[None]:
    """Raise errors of botocore as `StoreError`s that name the store and the next step."""
    from botocore import exceptions as boto

    try:
        yield
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StoreError(
            f"the store {uri} needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except boto.ClientError as error:
        raise StoreError(_refusal(error, uri, bucket)) from error
    except (boto.ResponseStreamingError, boto.IncompleteReadError) as error:
        raise StoreError(
            f"the connection to the store {uri} was cut off in the middle of a file ({_line(error)}): try again"
        ) from error
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise StoreError(
            f"the store {uri} cannot be reached in {ATTEMPTS} attempts ({_line(error)}): "
            "check AWS_ENDPOINT_URL and the network, then try again"
        ) from error
    except boto.BotoCoreError as error:
        raise StoreError(f"the store {uri} cannot be used: {_line(error)}") from error


def _refusal(error: Any, uri: str, bucket: str) -> str:
    code, message = error_code(error), error.response.get("Error", {}).get("Message", "")
    if code == "NoSuchBucket":
        return f"the store {uri}: there is no bucket {bucket}; create it or set SRPO_STORE"
    if code in _DENIED:
        return (
            f"the store {uri} refuses these credentials ({code}): check AWS_ACCESS_KEY_ID and its permissions"
        )
    if code in _BAD_DIGEST:
        return f"the store {uri} received other bytes than were sent ({code}) and kept none: try again"
    if code in _FULL:
        return f"the store {uri} is full ({code}): free space there, or set SRPO_STORE to another store"
    return f"the store {uri} answered {error.operation_name} with {code}: {message}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
