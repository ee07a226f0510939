"""Notify the channels of `SRPO_NOTIFY` of what happens to a run: hooks for flows, and functions for use within one."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefect import Flow, get_run_logger, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from flows.align_result import AlignResult
from flows.form import SettingsPatch
from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, load_settings, patched_settings
from srpo_core.errors import DamageError, GateError, SrpoError, StageError
from srpo_core.release.publishing import Published
from srpo_core.runtime.channels import Message, channels, in_background, send, unusable_channels
from srpo_core.runtime.notifications import Kind, compose
from srpo_core.storage import store_uri
from srpo_core.training.watchdog import is_restart_after_stall
from srpo_core.workspace.reproduce import StageResult
from srpo_core.workspace.worktree import Workspace

_PREFIX = "Flow run encountered an exception: "


def notify(
    kind: Kind,
    model: str,
    cause: str,
    links: Mapping[str, str | Path | None] = MappingProxyType({}),
    *,
    about: str | None = None,
) -> None:
    """Send a message of a kind from within a flow or one of its tasks, with a link to the run.

    about: what the title names beside the model; None: the run.
    """
    subject = [model, about or f"run {runtime.flow_run.name}"]
    send_in_run(compose(kind, subject, cause, {"run": _address(runtime.flow_run.id), **links}))


def send_in_run(message: Message) -> None:
    """Send a message from within a flow or one of its tasks; a channel that fails is a warning of the run."""
    log = get_run_logger()
    send(message, lambda line: log.warning("%s", line))


def notify_verdict(model: str, result: AlignResult, published: Published | None) -> None:
    """Notify that the gate refused the model, or that a version is new in the store."""
    if not result.passed:
        notify(Kind.REFUSED, model, result.reason, result.links)
    elif published and published.created:
        notify(Kind.PUBLISHED, model, result.reason, result.links, about=published.version)


def notify_alarm(workspace: Workspace, result: StageResult) -> None:
    """Notify that early stop's alarm ended the training of this run; a cached stage has been notified before."""
    outcome = workspace.path / artifacts.TRAIN_OUTCOME
    if result.stage == artifacts.TRAIN_OUTCOME.parent.name and not result.cached and outcome.is_file():
        alarm = artifacts.read_json(outcome).get("alarm")
        if alarm and alarm["reason"]:
            notify(Kind.ALARM, model_of(workspace), alarm["reason"])


def notify_stall(workspace: Workspace, line: str) -> None:
    """Notify that training starts its workers again after a stall, if a line of a stage says so."""
    if is_restart_after_stall(line):
        notify(Kind.STALL, model_of(workspace), line)


def model_of(workspace: Workspace) -> str:
    """Return the name of the model that a workspace makes."""
    return load_settings(workspace.path / PARAMS_FILE).release.name


def warn_of_channels(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Warn of URLs in `SRPO_NOTIFY` that cannot be used; a hook for flows that start to run."""
    del state  # Prefect passes it by name
    log, given = flow_run_logger(flow_run, flow), channels()

    def warn() -> None:
        for line in unusable_channels(given):
            log.warning("%s", line)

    if given:
        in_background(warn)


def notify_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Send why a run failed, or that its process died; a hook for flows that fail or crash.

    A refusal of a stage, such as check_reward's, and damage of the store are messages of their own kind.
    """
    log = flow_run_logger(flow_run, flow)
    error = None if state.is_crashed() else state.result(raise_on_failure=False)
    kind, about = Kind.FAILED, _model(flow_run) or flow.name
    if isinstance(error, DamageError):
        kind, about = Kind.DAMAGED, store_uri()
    elif isinstance(error, StageError) and error.exit_code == GateError.exit_code:
        kind = Kind.REFUSED
    known = isinstance(error, SrpoError)
    cause = str(error) if known else (state.message or state.name or "").removeprefix(_PREFIX)
    message = compose(kind, [about, f"run {flow_run.name}"], cause, {"run": _address(flow_run.id)})
    send(message, lambda line: log.warning("%s", line))


def notify_death(flow_run: FlowRun, log: Any) -> None:
    """Send that the process of a run of `align` has died, which another run has found."""
    state = flow_run.state
    cause = (state.message or state.name or "") if state else ""
    about = [_model(flow_run) or "align", f"run {flow_run.name}"]
    message = compose(Kind.FAILED, about, cause, {"run": _address(flow_run.id)})
    send(message, lambda line: log.warning("%s", line))


def _model(flow_run: FlowRun) -> str | None:
    """Return the model that a run of `align` makes; None if this checkout cannot say, or for another flow."""
    given = flow_run.parameters
    if "patch" not in given or given.get("revision"):
        return None
    try:
        patch = SettingsPatch.model_validate(given["patch"]).model_dump(mode="json", exclude_none=True)
        return patched_settings(Path.cwd(), profile=given.get("profile"), patch=patch).release.name
    except (SrpoError, ValidationError, OSError):  # likely the failure that is being notified
        return None


def _address(flow_run_id: Any) -> str | None:
    """Return the page of a run in Prefect's UI; None for a server that ends with the run."""
    return url_for("flow-run", obj_id=str(flow_run_id))
