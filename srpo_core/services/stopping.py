"""End the services, in order where possible, and in any case all of them."""

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from srpo_core.errors import SrpoError
from srpo_core.runtime.processes import end_leftovers
from srpo_core.services.running import (
    WORKER,
    acquire_or_find,
    find_guardian,
    list_services,
    started_environment,
)
from srpo_core.services.unfinished_runs import active_runs, end_runs

_REPORTING_SECONDS: Final = 15.0
_ORDERLY_SECONDS: Final = 60.0  # supervisord ends one service after the other, each within 20 s
_GUARDIAN_SECONDS: Final = 15.0
_BETWEEN: Final = 0.1


def stop(home: Path) -> list[str] | None:
    """End the services of a home and everything that they started; return the names of runs that this has ended.

    None if no services ran. First the runs end, which the worker reports, then the worker, then the server. If
    supervisord does not do that in time, the guardian ends all processes at once. If the guardian was killed, they are
    found by its mark.
    """
    found = acquire_or_find(home)
    if not isinstance(found, int):
        with found:
            return [] if end_leftovers() else None
    names = _end_runs(home, found)
    with suppress(psutil.NoSuchProcess):
        guardian = psutil.Process(found)
        if not (
            _ends(home, found, guardian.children(), _ORDERLY_SECONDS)
            or _ends(home, found, [guardian], _GUARDIAN_SECONDS)
        ):
            _ends(home, found, [guardian], _GUARDIAN_SECONDS, by=signal.SIGKILL)
    end_leftovers()
    return names


def _end_runs(home: Path, guardian: int) -> list[str]:
    """End the runs in progress, and wait until the worker has reported it; return their names."""
    try:
        environment = started_environment(guardian)
        names = [run.name for run in active_runs(environment)]
        workers = [service.pid for service in list_services(home) if service.name == WORKER and service.pid]
        for worker in workers:
            end_runs(worker)
        until = time.monotonic() + _REPORTING_SECONDS
        while workers and active_runs(environment) and time.monotonic() < until:
            time.sleep(_BETWEEN)
    except SrpoError:  # supervisord or the server do not answer: the next start corrects the states of runs
        return []
    return names


def _ends(
    home: Path,
    guardian: int,
    victims: Sequence[psutil.Process],
    seconds: float,
    by: signal.Signals = signal.SIGTERM,
) -> bool:
    """Ask processes to end; return whether the guardian, which ends last, has ended in time.

    One that has ended, but whose parent has not noticed it, does not count as running.
    """
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(by)
    until = time.monotonic() + seconds
    while find_guardian(home) == guardian:
        if time.monotonic() > until:
            return False
        time.sleep(_BETWEEN)
    return True
