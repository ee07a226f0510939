"""Show a run whose process has died as crashed, so that it can be retried and holds no slot of its deployment.

Its worker does that at once. If the worker has died too, or the run was started by `srpo align`, the server would show it as
running for good. Two others look: an automation of the server, which misses the heartbeats of the run's process, and the
next run on the same machine, which finds that the lock of the run's workspace is free.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Crashed

from flows.notices import notify_death
from srpo_core.artifacts import home
from srpo_core.runtime.prefect_api import API_URL
from srpo_core.workspace.run_record import KILLED, RUNNING, RunRecord, read_records

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

HEARTBEAT: Final = "prefect.flow-run.heartbeat"
# ten heartbeats of a process with the environment of this project, and more than one of Prefect's default, 180 s
SILENCE: Final = timedelta(minutes=5)
DIED: Final = "its process has died"
_SHOWN_ALIVE: Final = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)


def find_dead_runs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Let the server watch the heartbeats of this flow's runs, and report runs that died; a hook for runs that start.

    A server that refuses one of them is a warning of the run.
    """
    del state  # Prefect passes it by name
    log = flow_run_logger(flow_run, flow)
    try:
        with get_client(sync_client=True) as client:
            if os.environ.get(API_URL):
                watch_heartbeats(client, flow, flow_run)
            for dead in _report_dead(client, own=str(flow_run.id)):
                log.warning("run %s is shown as crashed: %s", dead.name, DIED)
                notify_death(dead, log)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        log.warning("the server cannot be asked for runs that died: %s", " ".join(str(error).split()))


def end_shown_tasks(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Show the tasks that a crashed run has left as running as crashed; a hook for flows that crash."""
    del flow, state
    with get_client(sync_client=True) as client:
        _end_tasks(client, flow_run)


def watch_heartbeats(
    client: "SyncPrefectClient", flow: Flow[..., Any], flow_run: FlowRun, silence: timedelta = SILENCE
) -> None:
    """Make the automation that shows runs of a flow as crashed after `silence` without a heartbeat, unless it exists.

    One that was switched off stays so.
    """
    automation = _automation(flow, flow_run, silence)
    if not client.read_automations_by_name(automation.name):
        client.create_automation(automation)


def _automation(flow: Flow[..., Any], flow_run: FlowRun, silence: timedelta) -> "AutomationCore":
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    return AutomationCore(
        name=f"srpo: runs of {flow.name} without heartbeat have crashed",
        description="made by flows/dead_runs.py; if it is switched off, it stays so",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.id": f"prefect.flow.{flow_run.flow_id}"}),
            after={HEARTBEAT},
            # also each state: a run that is suspended, waits for its retry or has ended sends no heartbeat
            expect={"prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                message=f"no heartbeat for {int(silence.total_seconds())} s: {DIED}",
                force=False,
            )
        ],
    )


def _report_dead(client: "SyncPrefectClient", *, own: str) -> Iterator[FlowRun]:
    """Show the killed runs of this home as crashed where the server shows them as alive; yield them as they are then.

    One that was being cancelled when it died is shown as cancelled, and is no failure.

    own: the run that asks. It and other live ones may be retries of runs that were killed, with the same ids.
    """
    records = read_records(home())
    alive = {own, *(record.flow_run for record in records if record.state == RUNNING)}
    for record in records:
        if (
            record.state == KILLED
            and record.ended is None
            and record.flow_run
            and record.flow_run not in alive
        ):
            run = _shown_alive(client, record)
            if run is not None:
                _end_tasks(client, run)
                assert run.state is not None
                if run.state.is_cancelling():  # the server lets nothing but a cancelled run follow
                    client.set_flow_run_state(run.id, Cancelled(message=DIED), force=True)
                    continue
                client.set_flow_run_state(run.id, Crashed(message=DIED))
                yield client.read_flow_run(run.id)


def _shown_alive(client: "SyncPrefectClient", record: RunRecord) -> FlowRun | None:
    """Return the run of a record if the server shows it as alive since before the record was made.

    A later state is that of a retry, which has the same id and another record, unless somebody cancelled the run.
    """
    assert record.flow_run is not None
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(record.flow_run)]))
    )
    alive = [
        run
        for run in found
        if run.state
        and run.state.type in _SHOWN_ALIVE
        and (run.state.timestamp <= record.started or run.state.is_cancelling())
    ]
    return alive[0] if alive else None


def _end_tasks(client: "SyncPrefectClient", run: FlowRun) -> None:
    running = TaskRunFilter(
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    )
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), task_run_filter=running
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=DIED), force=True)
