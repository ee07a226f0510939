"""Runs of the worker that have not ended: end their processes, and correct the state of those that have none.

A run whose process was killed together with its worker, by a power cut for instance, stays `Running` for the server, and
the next run of its deployment would wait for it forever.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.runtime.channels import send
from srpo_core.runtime.notifications import Kind, compose
from srpo_core.runtime.prefect_api import API_URL, ask_prefect_server
from srpo_core.services.configuration import POOL

_RUN: Final = (
    b"PREFECT__FLOW_RUN_ID="  # the worker sets it for the process of a run, and its children inherit it
)
_ACTIVE: Final = ("PENDING", "RUNNING", "CANCELLING")  # a paused or planned run needs no process
_SECONDS: Final = 30.0
_ENDING_SECONDS: Final = 20.0  # a flow ends its stage within 10 s
_MESSAGE: Final = "its process has ended together with the worker; a retry resumes"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActiveRun:
    """A run that the server takes for active. state: Prefect's type of state."""

    id: str
    name: str
    state: str


def active_runs(environment: Mapping[str, str]) -> list[ActiveRun]:
    """Return the runs of the pool that the server takes for active. Raises: see `ask_prefect_server`."""
    query = {**_active("flow_runs"), "work_pools": {"name": {"any_": [POOL]}}}
    found = _ask("/flow_runs/filter", query, environment)
    return [ActiveRun(one["id"], one["name"], one["state_type"]) for one in found]


def correct_lost_runs(environment: Mapping[str, str]) -> list[str]:
    """Set the active runs that have no process on this machine to Crashed, or Cancelled; return their names.

    Their tasks end alike, and the channels of `SRPO_NOTIFY` get a message for each that crashed. Only while no worker
    runs: one that has just taken a run has not started its process yet. flows/dead_runs.py does the same later, by
    heartbeats and at the next run, for runs whose worker died alone.
    """
    living = run_processes()
    lost = [run for run in active_runs(environment) if run.id not in living]
    for run in lost:
        kind = "CANCELLED" if run.state == "CANCELLING" else "CRASHED"
        change = {"state": {"type": kind, "name": kind.capitalize(), "message": _MESSAGE}, "force": True}
        for task in _ask("/task_runs/filter", _active("task_runs", run), environment):
            _ask(f"/task_runs/{task['id']}/set_state", change, environment)
        _ask(f"/flow_runs/{run.id}/set_state", change, environment)
        if kind == "CRASHED":
            message = compose(Kind.FAILED, [f"run {run.name}"], _MESSAGE, {"run": _page(run, environment)})
            send(message, lambda line: log.warning("%s", line))
    return [run.name for run in lost]


def end_runs(worker: int) -> None:
    """Ask the processes of the runs of a worker to end, and wait until they have; the worker reports each as crashed.

    worker: its process id.
    """
    until = time.monotonic() + _ENDING_SECONDS
    asked: set[int] = set()
    while time.monotonic() < until and (processes := _flow_processes(worker)):
        for process in processes - asked:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        asked |= processes
        time.sleep(0.1)


def run_processes() -> dict[str, set[int]]:
    """Return the ids of the runs that have processes on this machine, each with those processes' ids."""
    found: dict[str, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it has ended, or belongs to another user
            for variable in (entry / "environ").read_bytes().split(b"\0"):
                if variable.startswith(_RUN):
                    run = variable.removeprefix(_RUN).decode(errors="replace")
                    found.setdefault(run, set()).add(int(entry.name))
    return found


def _flow_processes(worker: int) -> set[int]:
    """Return the processes of runs that are children of the worker: the flows, not their stages."""
    import psutil

    try:
        children = {child.pid for child in psutil.Process(worker).children()}
    except psutil.NoSuchProcess:
        return set()
    return {process for processes in run_processes().values() for process in processes if process in children}


def _active(what: str, run: ActiveRun | None = None) -> dict[str, object]:
    """Return the query for what the server takes for active, of one run or of all."""
    query: dict[str, object] = {what: {"state": {"type": {"any_": list(_ACTIVE)}}}, "limit": 200}
    return {**query, "flow_runs": {"id": {"any_": [run.id]}}} if run else query


def _ask(path: str, query: object, environment: Mapping[str, str]) -> Any:
    return ask_prefect_server(path, query, environment, _SECONDS)


def _page(run: ActiveRun, environment: Mapping[str, str]) -> str:
    return f"{environment[API_URL].removesuffix('/api')}/runs/flow-run/{run.id}"
