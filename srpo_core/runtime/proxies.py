"""Let programs of this machine reach each other directly, where a proxy is configured for everything else.

Prefect's client, botocore, Ray and requests read the proxy from the environment and send requests for a server on
loopback through it too, unless `NO_PROXY` names the server.
"""

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
# variables with the address of a server that may run on this machine
_SERVERS: Final = (
    "PREFECT_API_URL",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "RAY_ADDRESS",
    "HF_ENDPOINT",
    "WANDB_BASE_URL",
)
_EXCEPTIONS: Final = ("no_proxy", "NO_PROXY")
_READ: Final = frozenset(
    {"http_proxy", "https_proxy", "all_proxy"}
)  # in either case; other programs have further ones
_SOCKS: Final = ("socks5", "socks5h")
_EVERYTHING: Final = "*"
_A_ROUTE: Final = ("192.0.2.1", 9)  # an address for documentation (RFC 5737): nothing is sent to it


def proxy_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that configure a proxy of a run's libraries: `https_proxy`, `ALL_PROXY`, ..."""
    return [name for name, value in environment.items() if name.lower() in _READ and value.strip()]


def direct_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `no_proxy` and `NO_PROXY` with this machine added to what the user has set; nothing without a proxy.

    Added are the names of loopback, this host's name and address, at which a local Ray listens, and those servers of
    `PREFECT_API_URL`, `AWS_ENDPOINT_URL` and the like that are on loopback.
    """
    if not proxy_variables(environment):
        return {}
    given = {name: [part.strip() for part in environment.get(name, "").split(",")] for name in _EXCEPTIONS}
    either = given["no_proxy"] if environment.get("no_proxy") else given["NO_PROXY"]
    if _EVERYTHING in either:
        return {}
    own = [*LOOPBACK, *_this_host(), *_loopback_servers(environment)]
    return {
        name: ",".join(dict.fromkeys(filter(None, [*(given[name] if any(given[name]) else either), *own])))
        for name in _EXCEPTIONS
    }


def useless_proxies(environment: Mapping[str, str]) -> list[str]:
    """Return the variables of proxies that Prefect's client cannot use: SOCKS without `socksio`, or not a URL of a proxy.

    It refuses to start with them, even for a server that `NO_PROXY` names.
    """
    usable = {"", "http", "https", *(_SOCKS if find_spec("socksio") else ())}
    return [name for name in proxy_variables(environment) if _scheme(environment[name].strip()) not in usable]


def _scheme(proxy: str) -> str | None:
    """Return the scheme of a proxy, which may be missing; None if host or port are."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
        return parts.scheme.lower() if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _this_host() -> Iterator[str]:
    """Yield the name of this host and the address of the interface by which it reaches others."""
    yield socket.gethostname()
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # OSError: no network
        probe.connect(_A_ROUTE)
        yield str(probe.getsockname()[0])


def _loopback_servers(environment: Mapping[str, str]) -> Iterator[str]:
    for name in _SERVERS:
        address = environment.get(name, "")
        with suppress(ValueError):  # not an address: who reads the variable reports it
            host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
            if host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback:
                yield host
