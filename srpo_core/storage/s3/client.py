"""Make the boto3 client of a store: address style, checksums, retries."""

import hashlib
from base64 import b64encode
from http import HTTPStatus
from logging import getLogger
from typing import Any, Final

from srpo_core.errors import StoreError
from srpo_core.storage.s3.errors import ATTEMPTS

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
# Requests of one store in flight at once.
CONNECTIONS: Final = 16

log = getLogger(__name__)


def make_client(uri: str) -> Any:
    """Return the client for a store. Endpoint, credentials and profile come from the AWS_* environment.

    A request that fails or is answered with 5xx or SlowDown is repeated with exponential backoff: together the delays
    are about a minute, so that a short outage of the server is survived.

    Raises:
        StoreError: the endpoint is not a URL, or there is no such profile.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ProfileNotFound

    try:
        session = boto3.session.Session()
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": _addressing_style(session)},
            # Only checksums that this package asks for. By itself boto3 sends CRC32 with every write, which some
            # stores refuse, and asks for the checksum of the whole object with a range of it, which cannot match.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        client = session.client("s3", config=config)
    except ProfileNotFound as error:
        raise StoreError(f"the store {uri}: {error}; check AWS_PROFILE") from error
    except ValueError as error:
        raise StoreError(f"the store {uri}: {error}; check AWS_ENDPOINT_URL") from error
    client.meta.events.register("before-call.s3.DeleteObjects", _use_md5)
    client.meta.events.register("needs-retry.s3", _Retries(uri).report)
    return client


def _addressing_style(session: Any) -> str:
    """Return `addressing_style` of the profile; without one, `path` behind a custom endpoint, else `auto`.

    Behind a custom endpoint the host name <bucket>.<host> usually does not exist. Stores that require it (Tencent
    COS, Aliyun OSS) need `addressing_style = virtual` in the profile.
    """
    core = session._session
    chosen = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
    if isinstance(chosen, str):
        return chosen
    from botocore.configprovider import ConfiguredEndpointProvider

    endpoint = ConfiguredEndpointProvider(
        full_config=core.full_config, scoped_config=core.get_scoped_config(), client_name="s3"
    ).provide()
    return "path" if endpoint else "auto"


def _use_md5(params: dict[str, Any], **_: Any) -> None:
    """Send a list of objects to delete with its MD5, which every store accepts, instead of boto3's CRC32."""
    md5 = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = b64encode(md5).decode()
    params["context"].pop("checksum", None)


class _Retries:
    """Report once that a store does not answer, so that a minute of retries is not taken for a hang."""

    def __init__(self, uri: str) -> None:
        self._uri, self._reported = uri, False

    def report(self, attempts: int, response: Any, caught_exception: Any, **_: Any) -> None:
        """Log the second failure of a request; the delay before the next attempt is botocore's own decision."""
        status = 0 if response is None else response[0].status_code
        if (
            attempts > 1
            and not self._reported
            and (caught_exception or status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        ):
            self._reported = True
            why = " ".join(str(caught_exception or f"HTTP {status}").split())
            log.warning("the store %s does not answer (%s): trying again for about a minute", self._uri, why)
