"""Start the services in order, each when what it needs is there. Every step may be repeated."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.file_lock import FileLock
from srpo_core.runtime.prefect_api import API_URL, ask_prefect_server, require_prefect_server
from srpo_core.runtime.processes import end_leftovers, start_kept
from srpo_core.services.configuration import LOG, POOL, worker_name, write_configuration
from srpo_core.services.running import (
    RUNNING,
    Service,
    acquire_or_find,
    directory_of,
    last_line,
    list_services,
    supervisor,
    write_address,
)

_STARTING: Final = frozenset({"STARTING", "BACKOFF", RUNNING})
_ENDS: Final = 3  # a service that ends so often before it is ready has a fault that repetition does not mend
_BETWEEN: Final = 0.5


def start_supervisor(home: Path, environment: Mapping[str, str]) -> bool:
    """Start supervisord, which starts no service yet; return False if it runs already.

    Processes of services whose guardian was killed are ended first.

    Raises:
        ConfigError: another program listens at the port.
        SrpoError: supervisord does not start; the message has the last line of its log.
    """
    found = acquire_or_find(home)
    if not isinstance(found, FileLock):
        return False
    with found:
        end_leftovers()
        _require_free_port(environment[API_URL])
        configuration = write_configuration(home, environment)
        write_address(home, environment[API_URL])
        start_kept(
            [sys.executable, "-m", "srpo_core.services.supervise", str(configuration)],
            cwd=directory_of(home),
            environment=environment,
            lock=found.fileno(),
        )
    return True


def wait_for_supervisor(home: Path, until: float) -> None:
    """Wait until supervisord answers. until: time of `time.monotonic`.

    Raises:
        SrpoError: it ended, or does not answer in time.
    """
    while True:
        try:
            list_services(home)
        except SrpoError:
            if time.monotonic() > until or not _has_guardian(home):
                log = directory_of(home) / LOG
                raise SrpoError(f"supervisord does not start: {last_line(log)}; read {log}") from None
            time.sleep(_BETWEEN)
        else:
            return


def is_started(home: Path, name: str) -> bool:
    """Whether supervisord runs a service or is starting it again."""
    return _service(home, name).state in _STARTING


def start_service(home: Path, name: str) -> bool:
    """Start a service; return False if it runs already."""
    if is_started(home, name):
        return False
    with supervisor(home) as answering:
        answering.startProcess(name, False)
    return True


def wait_for(home: Path, name: str, is_ready: Callable[[Service], bool], until: float) -> Service:
    """Wait until supervisord takes a service for started and it is ready, and return it. until: time of `time.monotonic`.

    Raises:
        SrpoError: it ends again and again, or is not ready in time; the message has the last line of its log.
    """
    processes: set[int] = set()
    while True:
        service = _service(home, name)
        if service.state == RUNNING and is_ready(service):
            return service
        processes |= {service.pid} - {0}
        if len(processes) >= _ENDS or service.state == "FATAL":
            raise SrpoError(f"{name} ends again and again: {last_line(service.log)}; read {service.log}")
        if time.monotonic() > until:
            raise SrpoError(f"{name} is not ready yet: {last_line(service.log)}; read {service.log}")
        time.sleep(_BETWEEN)


def answers(environment: Mapping[str, str]) -> Callable[[Service], bool]:
    """Return whether the API answers; a refusal of the secret is an error, because waiting does not mend it."""

    def is_ready(_: Service) -> bool:
        try:
            require_prefect_server(environment, seconds=5.0)
        except ConfigError:
            raise
        except SrpoError:
            return False
        return True

    return is_ready


def has_reported(environment: Mapping[str, str]) -> Callable[[Service], bool]:
    """Return whether the worker has reported to the server since its process started."""

    def is_ready(service: Service) -> bool:
        with suppress(SrpoError):
            path = f"/work_pools/{POOL}/workers/filter"
            for one in ask_prefect_server(path, {}, environment, 10.0) or []:
                beat = datetime.fromisoformat(one["last_heartbeat_time"])
                if one["name"] == worker_name() and beat.timestamp() >= service.started:
                    return True
        return False

    return is_ready


def _has_guardian(home: Path) -> bool:
    found = acquire_or_find(home)
    if isinstance(found, FileLock):
        found.release()
    return not isinstance(found, FileLock)


def _service(home: Path, name: str) -> Service:
    for service in list_services(home):
        if service.name == name:
            return service
    raise SrpoError(f"the services were started without {name}: run 'srpo down', then 'srpo up'")


def _require_free_port(address: str) -> None:
    """Raise `ConfigError` if a program listens at the port of an address on loopback."""
    port = urlsplit(address).port or 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used ({os.strerror(error.errno or 0)}): end the program that listens there, or "
                "run 'srpo up --port N' with another number"
            ) from None
