"""Ask the Prefect server of PREFECT_API_URL whether it answers, before a run or `srpo doctor` relies on it.

Prefect's own client would repeat the request and then print a page of traceback. The address and the variables mean here
what they mean to it. No message has a secret: neither that of a variable nor that of an address.
"""

import base64
import json
import os
import ssl
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urlsplit

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.proxies import LOOPBACK

API_URL: Final = "PREFECT_API_URL"
API_KEY: Final = "PREFECT_API_KEY"
AUTH_STRING: Final = "PREFECT_API_AUTH_STRING"
SECONDS: Final = 10.0
_HEADERS: Final = "PREFECT_CLIENT_CUSTOM_HEADERS"
_CERTIFICATE: Final = "PREFECT_API_SSL_CERT_FILE"
_SENT: Final = "Authorization"
_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
RUNS_AT_ONCE: Final = 200  # as many as Prefect's API returns in one answer
_COUNT: Final = "/flows/count"  # the cheapest request that needs the secret
_REMEDY: Final = (
    f"start the server, correct {API_URL}, or unset it: then a run starts its own server; that of 'srpo up' starts again by "
    "itself ('srpo up --status')"
)
# types of states; a run in another one, SCHEDULED, has not begun
_STARTED: Final = (
    "PENDING",
    "RUNNING",
    "PAUSED",
    "CANCELLING",
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "CRASHED",
)
_TRUE: Final = frozenset({"1", "true", "yes", "on"})


def secret_file(home: Path) -> Path:
    """Return the file with the secret of the servers that this project starts, below the home directory."""
    return home / "prefect" / "auth"


def is_on_this_machine(address: str) -> bool:
    """Whether the address of a server names this machine; False for what is no address."""
    try:
        return urlsplit(address.strip()).hostname in LOOPBACK
    except ValueError:
        return False


def with_own_secret(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return an environment with the secret of a home if its server is on this machine and no other secret is given."""
    given = dict(environment)
    secret = secret_file(home)
    if is_on_this_machine(given.get(API_URL, "")) and not given.get(AUTH_STRING) and secret.is_file():
        given[AUTH_STRING] = secret.read_text(encoding="utf-8", errors="replace")
    return given


def require_prefect_server(environment: Mapping[str, str] | None = None, seconds: float = SECONDS) -> None:
    """Require that the API of PREFECT_API_URL answers and accepts the secret; nothing is asked if the variable is blank.

    The secret, the certificate and further headers are those of Prefect's own variables, or user and password of the
    address.

    Raises:
        ConfigError: the address is not one of HTTP, a variable cannot be used, or the server refuses the secret.
        SrpoError: nothing answers within `seconds`, or what answers is not Prefect's API.
    """
    given = os.environ if environment is None else environment
    if given.get(API_URL, "").strip() and not isinstance(ask_prefect_server(_COUNT, {}, given, seconds), int):
        raise _not_prefect(f"{API_URL}={_shown(given[API_URL].strip())}")


def list_flow_runs(
    flow: str, environment: Mapping[str, str], *, limit: int, seconds: float
) -> list[dict[str, Any]]:
    """Return the runs of a flow that the server of PREFECT_API_URL knows and that are no mere plans, the newest first.

    limit: number of runs. seconds: for each `RUNS_AT_ONCE` of them, however slowly the server answers.

    Raises: see `require_prefect_server`.
    """
    query = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"state": {"type": {"any_": list(_STARTED)}}},
        "sort": "EXPECTED_START_TIME_DESC",
    }
    listed: dict[str, dict[str, Any]] = {}  # a run that starts meanwhile moves the others to a later page
    for offset in range(0, limit, RUNS_AT_ONCE):
        asked = min(RUNS_AT_ONCE, limit - offset)
        found = _page_of_runs({**query, "offset": offset, "limit": asked}, environment, seconds)
        listed |= {str(run["id"]): run for run in found}
        if len(found) < asked:
            break
    return list(listed.values())


def _page_of_runs(
    query: Mapping[str, Any], environment: Mapping[str, str], seconds: float
) -> list[dict[str, Any]]:
    answers: Queue[Any] = Queue()

    def ask() -> None:
        try:
            answers.put(ask_prefect_server("/flow_runs/filter", query, environment, seconds))
        except SrpoError as error:
            answers.put(error)

    # a thread of its own: looking up a name, and a server that answers byte by byte, have no limit in `urllib`
    Thread(target=ask, daemon=True).start()
    what = f"{API_URL}={_shown(environment[API_URL].strip())}"
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise SrpoError(f"no Prefect server answers at {what} within {seconds:g} s: {_REMEDY}") from None
    if isinstance(answer, SrpoError):
        raise answer
    if not isinstance(answer, list) or not all(isinstance(run, dict) and "id" in run for run in answer):
        raise _not_prefect(what)
    return answer


def ask_prefect_server(path: str, query: Any, environment: Mapping[str, str], seconds: float) -> Any:
    """Send a query to the API of PREFECT_API_URL and return the decoded answer, or None if it is not JSON.

    Raises: see `require_prefect_server`.
    """
    address = environment[API_URL].strip()
    parts = _parsed(address)
    what = f"{API_URL}={_shown(address)}"
    if parts is None:
        raise ConfigError(f"{what} is not an address: write http://HOST:4200/api, or unset it")
    headers, context = _headers(environment) | _basic(parts), _context(environment)
    # urllib would take user and password for a part of the host
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        return _ask(bare.rstrip("/") + path, query, headers, context, seconds)
    except HTTPError as error:
        raise _refusal(what, error) from None
    except (URLError, HTTPException, OSError) as error:
        raise SrpoError(f"no Prefect server answers at {what} ({_reason(error)}): {_REMEDY}") from None
    except ValueError:  # its text may have what was to be sent
        raise ConfigError(f"{what} cannot be asked: {_REMEDY}") from None


def _not_prefect(what: str) -> SrpoError:
    return SrpoError(
        f"what answers at {what} is not Prefect's API, but for instance a proxy or another server: {_REMEDY}"
    )


def _parsed(address: str) -> SplitResult | None:
    """Return the parts of an address of HTTP, or None if it is none."""
    try:
        parts = urlsplit(address)
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets without an end, or a port that is no number
        return None
    return parts if complete and address.isprintable() and " " not in address else None


def _shown(address: str) -> str:
    """Return an address without user and password, also if it is no URL."""
    before, at, rest = address.rpartition("@")
    scheme, separator, _ = before.partition("://")
    return f"{scheme + separator if separator else ''}***@{rest}" if at else address


def _refusal(what: str, error: HTTPError) -> SrpoError:
    if error.code in _REFUSED:
        return ConfigError(
            f"the Prefect server at {what} refuses the secret ({error.code}): set PREFECT_API_AUTH_STRING=USER:PASSWORD "
            "or PREFECT_API_KEY"
        )
    hint = " (the address of Prefect's API ends in /api)" if error.code == HTTPStatus.NOT_FOUND else ""
    return SrpoError(f"{what} answers with {error.code} {error.reason}{hint}: {_REMEDY}")


def _ask(url: str, query: Any, headers: Mapping[str, str], context: ssl.SSLContext, seconds: float) -> Any:
    """Return the decoded answer to a query, or None if it is not JSON."""
    body, sent = json.dumps(query).encode(), {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, body, sent, method="POST")  # noqa: S310  # the caller has checked the scheme
    with urllib.request.urlopen(request, timeout=seconds, context=context) as response:  # noqa: S310
        content = response.read()
    try:
        return json.loads(content)
    except ValueError:
        return None


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of Prefect's variables; the user and password come before the key, as in its client."""
    headers = _further_headers(environment.get(_HEADERS, "").strip())
    key = environment.get(API_KEY, "").strip()
    if secret := environment.get(AUTH_STRING, "").strip():
        headers[_SENT] = _encoded(secret)
    elif not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{API_KEY} has letters that no key has, such as a line break: copy it again")
    elif key:
        headers[_SENT] = f"Bearer {key}"
    return headers


def _further_headers(text: str) -> dict[str, str]:
    try:
        headers = json.loads(text or "{}")
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(
        isinstance(word, str) and word.isascii() and word.isprintable()
        for pair in headers.items()
        for word in pair
    ):
        raise ConfigError(
            f'{_HEADERS} cannot be sent: write names and values in ASCII, for instance {{"X-Team": "vision"}}, or unset it'
        )
    return headers


def _basic(parts: SplitResult) -> dict[str, str]:
    """Return the header for user and password of an address, which come before all others, as in Prefect's client."""
    if not parts.username and not parts.password:
        return {}
    return {_SENT: _encoded(f"{unquote(parts.username or '')}:{unquote(parts.password or '')}")}


def _encoded(secret: str) -> str:
    return f"Basic {base64.b64encode(os.fsencode(secret)).decode()}"


def _context(environment: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if file := environment.get(_CERTIFICATE):
        try:
            context.load_verify_locations(file)
        except OSError as error:
            raise ConfigError(
                f"{_CERTIFICATE}={file} cannot be read ({_reason(error)}): correct it"
            ) from None
    if environment.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in _TRUE:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return " ".join(str(cause).split()) or type(cause).__name__
