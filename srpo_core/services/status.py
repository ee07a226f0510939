"""What `srpo up --status` and `srpo doctor` say about the services."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from srpo_core.errors import SrpoError
from srpo_core.runtime.prefect_api import API_URL, require_prefect_server, with_own_secret
from srpo_core.services.running import RUNNING, SERVER, Service, last_line, list_services, running_address


@dataclass(frozen=True)
class Found:
    """A service, whether it is as it should be, and what is known of it."""

    name: str
    good: bool
    detail: str


def examine(home: Path) -> Iterator[Found]:
    """Yield each service of a home that runs; one entry if none runs or supervisord does not answer."""
    address = running_address(home)
    if address is None:
        yield Found("services", good=False, detail="not running: 'srpo up' starts them")
        return
    try:
        services = list_services(home)
    except SrpoError as error:
        yield Found("services", good=False, detail=str(error))
        return
    for service in services:
        yield _examined(service, home, address)


def _examined(service: Service, home: Path, address: str) -> Found:
    if service.state != RUNNING:
        detail = f"{service.state.lower()}: {last_line(service.log) or 'no output yet'}; read {service.log}"
        return Found(service.name, good=False, detail=detail)
    since = datetime.fromtimestamp(service.started, UTC)
    detail = f"process {service.pid} since {since:%Y-%m-%d %H:%M:%S} UTC"
    if service.name == SERVER:
        detail = f"{address.removesuffix('/api')}, {detail}"
        try:
            require_prefect_server(with_own_secret({**os.environ, API_URL: address}, home))
        except SrpoError as error:
            return Found(service.name, good=False, detail=f"{error}; {detail}")
    return Found(service.name, good=True, detail=detail)
