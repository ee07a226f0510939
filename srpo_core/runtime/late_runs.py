"""Find the scheduled runs that no worker has started in time, which the server of PREFECT_API_URL marks as Late.

A flow could not tell: the worker that is missing would have to start it. So `srpo notify --late` and `--watch` ask the
server from a process of their own.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import home, write_json
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.channels import Message
from srpo_core.runtime.notifications import Kind, compose
from srpo_core.runtime.prefect_api import API_URL, SECONDS, ask_prefect_server, with_own_secret

TAG: Final = "srpo"  # of the deployments in pipelines.yaml, and so of their runs
LIMIT: Final = 200  # the most runs that the server returns at once
UNANSWERED: Final = 5  # checks, after which a server that does not answer is notified
_REMEDY: Final = "is a worker running? prefect worker start --pool"

Deliver = Callable[[Message], bool]


def noted_runs() -> Path:
    """Return the file with the ids of the late runs that have been notified."""
    return home() / "notified/late.json"


def notify_late(deliver: Deliver, noted: Path | None = None, now: datetime | None = None) -> int:
    """Send one message for each deployment with late runs that were not notified before; return their number.

    deliver: sends a message, and returns whether a channel took it. If none did, the runs are tried again next time.
    noted: by default `noted_runs()`.

    Raises:
        ConfigError: PREFECT_API_URL is not set or cannot be used.
        SrpoError: the server does not answer.
    """
    file = noted or noted_runs()
    late, known = _late_runs(), _read(file)
    new: dict[str, list[Mapping[str, Any]]] = {}
    for run in late:
        if run["id"] not in known:
            new.setdefault(str(run["deployment_id"]), []).append(run)
    names = _names(new) if new else {}
    for deployment, runs in new.items():
        if deliver(_message(names.get(deployment, deployment), runs, now or datetime.now(UTC))):
            known |= {run["id"] for run in runs}
    write_json(file, sorted(known & {run["id"] for run in late}))
    return len(new)


@dataclass
class LateWatch:
    """Repeat `notify_late`, and notify once if the server does not answer: then no schedule starts either.

    unanswered: number of checks in a row without an answer.
    """

    deliver: Deliver
    noted: Path | None = None
    unanswered: int = 0

    def check(self) -> str | None:
        """Check once. Return why the server could not be asked, or None. Raises `ConfigError` if it never can be."""
        try:
            notify_late(self.deliver, self.noted)
        except ConfigError:
            raise
        except SrpoError as error:
            self.unanswered += 1
            if self.unanswered == UNANSWERED:
                what = f"no schedule starts, because the Prefect server has not answered {UNANSWERED} times: {error}"
                self.deliver(compose(Kind.LATE, ["Prefect server"], what))
            return str(error)
        self.unanswered = 0
        return None


def _late_runs() -> list[dict[str, Any]]:
    """Return the late runs of this project's deployments, those that should have started first at the front."""
    filters = {
        "state": {"name": {"any_": ["Late"]}},
        "tags": {"all_": [TAG]},
        "deployment_id": {"is_null_": False},
    }
    query = {"flow_runs": filters, "sort": "EXPECTED_START_TIME_ASC", "limit": LIMIT}
    return _ask("/flow_runs/filter", query)


def _names(deployments: Collection[str]) -> dict[str, str]:
    """Return the names of deployments by id."""
    found = _ask("/deployments/filter", {"deployments": {"id": {"any_": sorted(deployments)}}})
    return {one["id"]: one["name"] for one in found}


def _ask(path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
    environment = with_own_secret(os.environ, home())
    if not environment.get(API_URL, "").strip():
        raise ConfigError(f"{API_URL} is not set: set it to the server's address, http://HOST:4200/api")
    answer = ask_prefect_server(path, query, environment, SECONDS)
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        raise SrpoError(f"what answers at {API_URL} is not Prefect's API: correct the address")
    return answer


def _message(name: str, runs: Sequence[Mapping[str, Any]], now: datetime) -> Message:
    first = runs[0]
    planned = datetime.fromisoformat(first["expected_start_time"]).astimezone(UTC)
    minutes = (now - planned).total_seconds() / 60
    what = f"run {first['name']}" if len(runs) == 1 else f"{len(runs)} runs"
    cause = (
        f"planned for {planned:%Y-%m-%d %H:%M} UTC and not started {minutes:.0f} minutes later; {_REMEDY} "
        f"{first.get('work_pool_name') or 'local-process'}"
    )
    return compose(Kind.LATE, [name, what], cause)


def _read(noted: Path) -> set[str]:
    """Return the ids in a file; none if it is missing or damaged, so that a run is rather notified twice."""
    try:
        return set(json.loads(noted.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return set()
