"""Whether the services of a home directory run, at which address, and in which state each of them is."""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from xmlrpc.client import Error, ServerProxy

from srpo_core.artifacts import read_json, write_json
from srpo_core.errors import SrpoError
from srpo_core.runtime import file_lock
from srpo_core.runtime.prefect_api import API_URL, AUTH_STRING
from srpo_core.runtime.processes import is_alive
from srpo_core.runtime.proxies import direct_environment

SERVER: Final = "server"
WORKER: Final = "worker"
NOTIFIER: Final = "notify"
SOCKET: Final = "supervisor.sock"
RUNNING: Final = "RUNNING"
_ORDER: Final = (SERVER, WORKER, NOTIFIER)
_SECONDS: Final = 10.0  # for an answer of supervisord, which does nothing that takes time
_REGISTERING_SECONDS: Final = 30.0  # a guardian writes its mark at its start


@dataclass(frozen=True)
class Service:
    """A service as supervisord sees it.

    state: supervisord's word, such as RUNNING, STARTING, BACKOFF (it ended at its start, and is started again) or
    STOPPED. pid: 0 if it has none. started: seconds since 1970. log: its output.
    """

    name: str
    state: str
    pid: int
    started: int
    log: Path


def directory_of(home: Path) -> Path:
    """Return the directory of the services' files, below the home directory."""
    return home / "services"


def lock_of(home: Path) -> Path:
    """Return the file that the guardian of the services locks, with its mark in it."""
    return directory_of(home) / "lock"


def find_guardian(home: Path) -> int | None:
    """Return the process id of the guardian of the services that run, or None.

    A mark that is left in the file, and whose process id another process has now, does not count: the lock is free, or
    the process has started at another time.
    """
    path = lock_of(home)
    if not path.is_file() or (mark := _mark(path)) is None:
        return None
    if (free := file_lock.try_acquire(path, shared=True)) is not None:  # shared: two who look do not meet
        free.release()
        return None
    return int(mark.partition(".")[0])


def acquire_or_find(home: Path) -> file_lock.FileLock | int:
    """Lock the services, which do not run, or return the process id of their guardian.

    Raises:
        SrpoError: the lock is held, and its holder is no guardian.
    """
    until = time.monotonic() + _REGISTERING_SECONDS
    while True:
        if (lock := file_lock.try_acquire(lock_of(home))) is not None:
            return lock
        if (guardian := find_guardian(home)) is not None:
            return guardian
        if time.monotonic() > until:
            raise SrpoError(f"{lock_of(home)} is locked by a process that is no guardian: end that process")
        time.sleep(0.05)


def write_address(home: Path, address: str) -> None:
    """Note the address of the server's API that is about to be started."""
    write_json(directory_of(home) / "address.json", {"api": address})


def running_address(home: Path) -> str | None:
    """Return the address of the server's API if the services of a home run, else None."""
    if find_guardian(home) is None:
        return None
    return str(read_json(directory_of(home) / "address.json")["api"])


def started_environment(guardian: int) -> dict[str, str]:
    """Return the environment with which the services were started. Raises `SrpoError` if they have ended."""
    try:
        content = Path(f"/proc/{guardian}/environ").read_bytes()
    except OSError:
        raise SrpoError("the services have been ended meanwhile: run 'srpo up' again") from None
    return dict(os.fsdecode(entry).partition("=")[::2] for entry in content.split(b"\0") if b"=" in entry)


def with_running_services(given: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return an environment with address and secret of the services that run, if it names no server itself."""
    guardian = find_guardian(home)
    if guardian is None or given.get(API_URL, "").strip():
        return dict(given)
    started = started_environment(guardian)
    reached: dict[str, str] = {name: started[name] for name in (API_URL, AUTH_STRING) if name in started}
    return {**given, **reached, **direct_environment({**given, **reached})}


@contextmanager
def supervisor(home: Path) -> Iterator[Any]:
    """Yield the interface of supervisord.

    Raises:
        SrpoError: it does not answer, or refuses.
    """
    from supervisor.xmlrpc import SupervisorTransport

    before = socket.getdefaulttimeout()
    # by the descriptor: the path of a socket may have no more than 107 bytes
    descriptor = os.open(directory_of(home), os.O_RDONLY | os.O_DIRECTORY)
    transport = SupervisorTransport(None, None, f"unix:///proc/self/fd/{descriptor}/{SOCKET}")
    try:
        socket.setdefaulttimeout(_SECONDS)  # the transport takes none
        yield ServerProxy("http://127.0.0.1", transport=transport).supervisor
    except (OSError, HTTPException, Error) as error:
        raise SrpoError(
            f"supervisord of {directory_of(home)} does not answer ({error}): run 'srpo down', then 'srpo up'"
        ) from None
    finally:
        transport.close()
        socket.setdefaulttimeout(before)
        os.close(descriptor)


def list_services(home: Path) -> list[Service]:
    """Ask supervisord for its services, in the order in which they start. Raises `SrpoError` if it does not answer."""
    with supervisor(home) as answering:
        found: list[Mapping[str, Any]] = answering.getAllProcessInfo()
    return [
        Service(
            name=str(one["name"]),
            state=str(one["statename"]),
            pid=int(one["pid"]),
            started=int(one["start"]),
            log=directory_of(home) / f"{one['name']}.log",
        )
        for one in sorted(found, key=lambda one: _ORDER.index(one["name"]))
    ]


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank; empty if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _mark(path: Path) -> str | None:
    mark = path.read_text(encoding="ascii", errors="replace").strip()
    return mark if is_alive(mark) else None
