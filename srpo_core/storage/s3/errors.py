"""Translate errors of boto3 into `StoreError`s of one line, and name the error codes that the store handles."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from srpo_core.errors import StoreError

# With botocore's backoff, the delays between so many attempts are about a minute together.
ATTEMPTS: Final = 10

CONDITION_FAILED: Final = ("PreconditionFailed", "412")
CONDITION_UNKNOWN: Final = ("NotImplemented", "501")
CONFLICT: Final = ("ConditionalRequestConflict", "409")
ABSENT: Final = ("NoSuchKey", "404")
# answers to a header or a request that the store does not know
UNKNOWN: Final = (
    "NotImplemented",
    "501",
    "InvalidArgument",
    "InvalidRequest",
    "MethodNotAllowed",
    "405",
    "400",
)
OUTSIDE: Final = ("InvalidRange", "416")
UPLOAD_GONE: Final = ("NoSuchUpload",)
_BAD_DIGEST: Final = ("BadDigest", "InvalidDigest")
WRONG_DIGEST: Final = (*_BAD_DIGEST, "400")
BUSY: Final = ("SlowDown", "ServiceUnavailable", "503", "InternalError", "500", "502", "504")

# What the error says for each group of codes.
_REFUSALS: Final[Sequence[tuple[Sequence[str], str]]] = (
    (("NoSuchBucket",), "cannot be used: there is no bucket {bucket}; create it or set SRPO_STORE"),
    (
        ("SignatureDoesNotMatch",),
        "refuses these credentials ({code}): it knows the key, so check AWS_SECRET_ACCESS_KEY",
    ),
    (
        ("AccessDenied", "403", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken"),
        "refuses these credentials ({code}): check AWS_ACCESS_KEY_ID and its permissions",
    ),
    (("RequestTimeTooSkewed",), "refuses the time of this machine ({code}): set its clock"),
    (BUSY, "was too busy in each of {attempts} attempts ({code}): try again later"),
    (_BAD_DIGEST, "received other bytes than were sent ({code}) and kept none: try again"),
    (
        ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"),
        "is full ({code}): free space there, or set SRPO_STORE to another store",
    ),
)


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
    for codes, text in _REFUSALS:
        if code in codes:
            return f"the store {uri} {text.format(code=code, bucket=bucket, attempts=ATTEMPTS)}"
    return f"the store {uri} answered {error.operation_name} with {code}: {message}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
