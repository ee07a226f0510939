"""Wait for a person's decision about a release that a run has published, and carry it out.

A run that waits is suspended: it has no process. When somebody submits its form, Prefect starts the flow anew, which finds
the request that it has left on the server, and the answer.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of each flow.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, read_flow_run_input
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Scheduled
from prefect.utilities.urls import url_for
from pydantic import BaseModel, Field, ValidationError

from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.notices import notify, notify_failure, send_in_run, warn_of_channels
from srpo_core.artifacts import home
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.release import approval
from srpo_core.release.comparison import compare_with_champion
from srpo_core.release.guard import guarded_store
from srpo_core.release.links import release_links
from srpo_core.release.notices import move_message
from srpo_core.release.publishing import Published
from srpo_core.release.references import in_production
from srpo_core.report.text import markdown_text
from srpo_core.runtime.notifications import Kind, awaiting_approval
from srpo_core.storage import model_of, open_store
from srpo_core.workspace.run_record import State as RunState
from srpo_core.workspace.run_record import note_decision

CLOSING: Final = "close-approval/close-approval"  # the deployment of the flow below
_KEY: Final = "approval"  # of the suspension, of which a run has one, and of the artifact
_REQUEST: Final = "approval-request"
_ANSWER: Final = "suspended-approval-response"  # Prefect's key for what was submitted
_GRACE: Final = timedelta(minutes=1)  # clocks of server and worker differ
_NAMES: Final[dict[RunState, str]] = {
    "promoted": "Promoted",
    "rejected": "Rejected",
    "undecided": "Undecided",
}


class Decision(RunInput):
    """The form of a run that waits for approval."""

    decision: Literal["approve", "reject"] = Field(
        description="approve: it becomes production; reject: nothing moves. Reason and name are kept in its history."
    )
    # no descriptions: the form is small, and what the person decides by is above these fields
    reason: str = Field(pattern=r"\S", max_length=1000)
    name: str = Field(pattern=r"\S", max_length=100, title="Your name")


class Request(BaseModel):
    """What a run asks for. champion: the version in production that the candidate was compared with, or None.

    until: when the time to decide ends; text: the comparison, as Markdown; closing: the run that ends the wait then.
    """

    version: str
    champion: str | None
    until: datetime
    text: str
    closing: UUID


def require_possible(*, publish: bool, hours: float) -> None:
    """Check that this run can be suspended until somebody decides, before any of its stages runs.

    Raises:
        ConfigError: it is no run of a deployment, it does not publish, or the flow that ends the wait is not deployed.
    """
    if not publish:
        raise ConfigError(
            "require_approval needs publish: a person decides about a release that is in the store"
        )
    if not 0 < hours <= 24 * 365:
        raise ConfigError(f"approval_hours is {hours}: it must be above 0 and at most 8760, a year")
    if deployment.id is None:
        raise ConfigError(
            "require_approval needs a run of a deployment, which a worker can resume: start align-with-approval in "
            "Prefect's UI; without a server, 'srpo align' and then 'srpo approve' or 'srpo reject'"
        )
    with get_client(sync_client=True) as client:
        _closing_deployment(client)


def own_request() -> Request | None:
    """Return what this run has asked for before it was suspended; None for a run that has asked for nothing yet."""
    return None if deployment.id is None else _request_of(UUID(flow_run.id))


def ask(published: Published, *, verdict: str, hours: float) -> Request | None:
    """Leave the request of this run on the server, plan the end of the wait, and notify.

    None if the version is in production already, so that there is nothing to decide.
    """
    store, version = open_store(), published.version
    champion = in_production(store, model_of(version))
    if champion == version:
        get_run_logger().info("%s is in production already: there is nothing to approve", version)
        return None
    until, closing = _plan_end(hours)
    text = compare_with_champion(store, version, champion, until=until)
    page = create_markdown_artifact(text, key=_KEY, description=f"{version} waits for approval")
    if address := url_for(
        "flow-run", obj_id=flow_run.id
    ):  # Prefect has no function for the address of an artifact
        larger = address.replace(f"runs/flow-run/{flow_run.id}", f"artifacts/artifact/{page}")
        text = f"[The same on a page of its own]({larger})\n\n{text}"
    request = Request(version=version, champion=champion, until=until, text=text, closing=closing)
    create_flow_run_input(_REQUEST, request.model_dump(mode="json"), flow_run_id=UUID(flow_run.id))
    message = awaiting_approval(
        version,
        champion,
        verdict=verdict,
        form=url_for("flow-run", obj_id=flow_run.id),
        until=f"{until:%Y-%m-%d %H:%M} UTC",
        links=release_links(store, version),
    )
    send_in_run(message)
    return request


def _plan_end(hours: float) -> tuple[datetime, UUID]:
    """Plan the run that ends the wait; return when the time is over, and that run.

    A retry after a kill keeps the end that the attempt before it has planned, unless that is over.

    Raises:
        SrpoError: the server has planned none.
    """
    now = datetime.now(UTC)
    until = now + timedelta(hours=hours)
    with get_client(sync_client=True) as client:
        for key in (f"close-{flow_run.id}", f"close-{flow_run.id}-{until.timestamp():.0f}"):
            closing = client.create_flow_run_from_deployment(
                _closing_deployment(client),
                parameters={"run_id": flow_run.id},
                state=Scheduled(scheduled_time=until + _GRACE),
                name=f"close-{flow_run.name}",
                idempotency_key=key,
            )
            planned = closing.state.state_details.scheduled_time if closing.state else None
            if planned is not None and planned - _GRACE > now:
                return planned - _GRACE, closing.id
    raise SrpoError(
        f"the server has planned no run of {CLOSING} that ends the wait of run {flow_run.name}: retry the run, or decide with "
        "'srpo approve' or 'srpo reject'"
    )


def decide(request: Request) -> "State[Any]":
    """Suspend this run until its form is submitted; in the run that is resumed, carry the decision out.

    Raises:
        StoreError: the candidate has changed, or another release is in production; and what `promote` raises.
        ConfigError: the run was started again without a decision.
    """
    answer = _answer(request)
    who, why = answer.name.strip(), f"{answer.reason.strip()} (run {flow_run.name})"
    try:
        if _submitted() > request.until:
            return _ended(
                "undecided", request, f"{who} has decided after {_time(request)}, so nothing was changed"
            )
        if answer.decision == "reject":
            approval.reject(guarded_store(), request.version, why=why, who=who)
            return _ended("rejected", request, f"rejected by {who}: {why}")
        store = guarded_store()
        move = approval.approve(store, request.version, why=why, who=who, champion=request.champion)
        if message := move_message(Kind.PROMOTED, store, move, why, who=who):
            send_in_run(message)
        return _ended("promoted", request, f"approved by {who}: {why}")
    except SrpoError as error:
        note_decision(home(), flow_run.id, "failed", f"{answer.decision} by {who}: {error}")
        raise


@flow(
    name="close-approval",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def close_approval(run_id: UUID) -> "State[None]":
    """End a run that waits for approval, when its time is over. The candidate stays what it is, and so does production.

    Runs that wait plan this themselves.

    Args:
        run_id: the run that waits.
    """
    request = _request_of(run_id)
    if request is None:
        raise ConfigError(f"run {run_id} has not asked for approval: give the id of a run that waits")
    if datetime.now(UTC) < request.until:
        raise ConfigError(f"run {run_id} waits until {_time(request)}: cancel it to end it before")
    with get_client(sync_client=True) as client:
        waiting = client.read_flow_run(run_id)
        if not _is_suspended(waiting):
            state = waiting.state.name if waiting.state else "unknown"
            return Completed(
                message=f"nothing to do: run {waiting.name} does not wait any more, it is {state}"
            )
        line = f"nobody has decided until {_time(request)}: {request.version} stays the candidate"
        ended: State[None] = Completed(name=_NAMES["undecided"], message=line)
        answer = client.set_flow_run_state(run_id, ended)
    if answer.status != SetStateStatus.ACCEPT:
        raise SrpoError(f"run {waiting.name} could not be ended: {answer.details}; cancel it in Prefect's UI")
    note_decision(home(), str(run_id), "undecided", line)
    links = {"run that waited": url_for("flow-run", obj_id=str(run_id))}
    notify(Kind.UNDECIDED, model_of(request.version), line, links, about=request.version)
    return Completed(message=f"run {waiting.name}: {line}")


def _answer(request: Request) -> Decision:
    """Suspend this run with its form, or return what was submitted if it was suspended before."""
    form = Decision.with_initial_data(description=request.text)
    try:
        return suspend_flow_run(wait_for_input=form, key=_KEY)
    except ValidationError:
        raise ConfigError(
            f"run {flow_run.name} was started again without a decision about {request.version}: decide with "
            f"'srpo approve {request.version} --why ...' or 'srpo reject'"
        ) from None


def _submitted() -> datetime:
    """Return when the form of this run was submitted: a worker may carry it out much later."""
    with get_client(sync_client=True) as client:
        (given,) = client.filter_flow_run_input(UUID(flow_run.id), _ANSWER, limit=1, exclude_keys=set())
    assert given.created is not None, "the server dates what it stores"
    return given.created


def _ended(state: RunState, request: Request, line: str) -> "State[None]":
    """Record the outcome, show it in the UI, drop the planned end of the wait, and return the state of the run."""
    note_decision(home(), flow_run.id, state, line)
    create_markdown_artifact(
        f"## {request.version}: {state}\n{markdown_text(line)}\n\n{request.text}",
        key=_KEY,
        description=f"{request.version} is {state}",
    )
    with get_client(sync_client=True) as client:
        try:
            client.delete_flow_run(request.closing)
        except ObjectNotFound:  # an earlier attempt has dropped it
            get_run_logger().debug("the run %s, which would end the wait, is gone", request.closing)
    return Completed(name=_NAMES[state], message=f"{request.version} {line}")


def _request_of(run_id: UUID) -> Request | None:
    found = read_flow_run_input(_REQUEST, flow_run_id=run_id)
    return None if found is None else Request.model_validate(found)


def _closing_deployment(client: Any) -> UUID:
    try:
        return cast("UUID", client.read_deployment_by_name(CLOSING).id)
    except ObjectNotFound:
        raise ConfigError(
            f"require_approval needs the deployment {CLOSING}, which ends the wait: deploy pipelines.yaml with "
            "'prefect --no-prompt deploy --prefect-file pipelines.yaml --all'"
        ) from None


def _is_suspended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_paused()


def _time(request: Request) -> str:
    return f"{request.until:%Y-%m-%d %H:%M} UTC"
