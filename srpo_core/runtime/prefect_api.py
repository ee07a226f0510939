"""Ask the Prefect server of PREFECT_API_URL whether it answers, before a run or `srpo doctor` relies on it.

Prefect's own client would repeat the request and then print a page of traceback.
"""

import base64
import json
import os
import ssl
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from srpo_core.errors import ConfigError, SrpoError

API_URL: Final = "PREFECT_API_URL"
AUTH_STRING: Final = "PREFECT_API_AUTH_STRING"
SECONDS: Final = 10.0
_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_COUNT: Final = "/flows/count"  # the cheapest request that needs the secret
_REMEDY: Final = f"start the server, correct {API_URL}, or unset it: then a run starts its own server"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})


def require_prefect_server(environment: Mapping[str, str] | None = None, seconds: float = SECONDS) -> None:
    """Require that the API of PREFECT_API_URL answers and accepts the secret; nothing is asked if the variable is unset.

    The secret, the certificate and further headers are those of Prefect's own variables.

    Raises:
        ConfigError: the address is not one of HTTP, or the server refuses the secret.
        SrpoError: nothing answers within `seconds`, or what answers is not Prefect's API.
    """
    given = os.environ if environment is None else environment
    if not (address := given.get(API_URL, "").strip()):
        return
    what = f"{API_URL}={address}"
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise ConfigError(f"{what} is not an address: write http://HOST:4200/api, or unset it")
    try:
        answer = _ask(address.rstrip("/") + _COUNT, given, seconds)
    except HTTPError as error:
        raise _refusal(what, error) from None
    except (URLError, HTTPException, OSError) as error:
        raise SrpoError(f"no Prefect server answers at {what} ({_reason(error)}): {_REMEDY}") from None
    except ValueError as error:
        raise ConfigError(f"{what} cannot be asked ({error}): {_REMEDY}") from None
    if not isinstance(answer, int):
        raise SrpoError(
            f"what answers at {what} is not Prefect's API, but for instance a proxy or another server: {_REMEDY}"
        )


def _refusal(what: str, error: HTTPError) -> SrpoError:
    if error.code in _REFUSED:
        return ConfigError(
            f"the Prefect server at {what} refuses the secret ({error.code}): set PREFECT_API_AUTH_STRING=USER:PASSWORD "
            "or PREFECT_API_KEY"
        )
    hint = " (the address of Prefect's API ends in /api)" if error.code == HTTPStatus.NOT_FOUND else ""
    return SrpoError(f"{what} answers with {error.code} {error.reason}{hint}: {_REMEDY}")


def _ask(url: str, environment: Mapping[str, str], seconds: float) -> Any:
    """Return the decoded answer to an empty request, or None if it is not JSON."""
    body, headers = b"{}", {"Content-Type": "application/json", **_headers(environment)}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310  # the caller has checked the scheme
    with urllib.request.urlopen(request, timeout=seconds, context=_context(environment)) as response:  # noqa: S310
        content = response.read()
    try:
        return json.loads(content)
    except ValueError:
        return None


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    headers: dict[str, str] = json.loads(environment.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
    if key := environment.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif secret := environment.get(AUTH_STRING):
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    return headers


def _context(environment: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if file := environment.get("PREFECT_API_SSL_CERT_FILE"):
        context.load_verify_locations(file)
    if environment.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in _TRUE:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return " ".join(str(cause).split()) or type(cause).__name__
