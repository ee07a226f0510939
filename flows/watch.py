"""A Prefect flow that compares the newest data with those of production, and starts a run if they have moved.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of the flow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterIdempotencyKey,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed
from prefect.utilities.urls import url_for

from flows import display
from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.notices import notify, notify_failure, warn_of_channels
from srpo_core.cli.drift import PROMPTS, Drift, drift_rows, measure_drift, newest_version
from srpo_core.config import PARAMS_FILE, load_settings
from srpo_core.errors import ConfigError
from srpo_core.release.training_data import TrainingData, data_of_production
from srpo_core.report.drift_chart import drift_image
from srpo_core.runtime.notifications import Kind
from srpo_core.storage import open_store
from srpo_core.workspace.data_settings import READING, as_options, next_command, noted_patch
from srpo_core.workspace.data_versions import noted
from srpo_core.workspace.git import git

ALIGN: Final = "align/align-on-new-data"
DATA: Final = "data/data"
_ENDED_IN_VAIN: Final = frozenset({"FAILED", "CRASHED", "CANCELLED"})
_AT_ONCE: Final = 200  # runs that the server returns


@dataclass(frozen=True)
class WatchResult:
    """The outcome. line: in words; drift: whether data moved beyond the settings; run: the started run's name, or None."""

    line: str
    drift: bool = False
    run: str | None = None


@flow(
    name="watch",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def watch(
    version: str | None = None,
    prompts: str | None = None,
    ingest: dict[str, Any] | None = None,
    name: str = "prompts",
    start: bool = True,
) -> "State[WatchResult]":
    """Compare the newest data with those that production was trained on; start a run if they moved beyond the settings.

    Styles of prompts and the reward's agreement with people are compared, by the part `watch` of the worker's params.yaml.
    A run is started once for a version, and not if there is one of it already.

    Args:
        version: tag of the data version to compare; empty takes the newest one of the data set of production.
        prompts: file of prompts on the worker to compare instead of a version. If they moved, the flow `data` makes a
            version of them, and this starts the run.
        ingest: settings of ingest with which the file is read, such as columns.
        name: name of the data set that is made of the file.
        start: start a run; otherwise the outcome is only reported.
    """
    if version and prompts:
        raise ConfigError(
            "version and prompts exclude each other: give one of them, or none for the newest version"
        )
    settings, checkout = load_settings(PARAMS_FILE), Path.cwd()
    production = data_of_production(open_store(), settings.release.name, checkout)
    if isinstance(production, str):
        return _ended("Nothing to compare", WatchResult(f"nothing to compare: {production}"))
    newer = prompts or version or newest_version(checkout, production)
    if newer == production.tag:
        line = f"no drift: {production.release}, which is in production, was trained on the newest version, {newer}"
        return _ended("No drift", WatchResult(line))
    drift = compare(production, newer, (ingest or {}) if prompts else None)
    if not drift.is_beyond:
        return _ended("No drift", WatchResult(drift.line))
    if not start:
        what = f"srpo data {newer} --format {PROMPTS} --name {name}" if prompts else _command(checkout, newer)
        return _ended("Drift", WatchResult(f"{drift.line}; start a run: {what}", drift=True))
    if prompts:
        parameters = {"source": str(Path(prompts).absolute()), "name": name, "format_name": PROMPTS}
        run, is_new = start_run(DATA, {**parameters, "ingest": ingest or {}}, drift)
    else:
        revision = git(checkout, "rev-parse", f"{newer}^{{commit}}")
        run, is_new = start_run(
            ALIGN, {"revision": revision, "patch": noted_patch(newer, noted(checkout, newer)[0])}, drift
        )
    if is_new:
        notify(Kind.DRIFT, settings.release.name, drift.line, {"started": url_for(run)}, about=newer)
    did = "started run" if is_new else "not started again: there is run"
    return _ended("Drift", WatchResult(f"{drift.line}; {did} {run.name}", drift=True, run=run.name))


@task(task_run_name="compare", cache_policy=NO_CACHE)
def compare(production: TrainingData, newer: str, prompts: dict[str, Any] | None) -> Drift:
    """Measure how far the data moved, and show it as a table and a chart."""
    log = get_run_logger()
    what = f"{newer} with {production.tag} of {production.release}"
    log.info("compare: %s", what, extra=display.started("compare", what))
    drift = measure_drift(load_settings(PARAMS_FILE), production, newer, prompts=prompts)
    create_table_artifact(drift_rows(drift), key="drift", description=drift.line)
    styles = drift.styles
    image = drift_image(styles.before if styles else {}, styles.after if styles else {}, drift.agreement)
    create_image_artifact(
        image, key="drift-chart", description=f"{production.tag} of {production.release}, and {newer}"
    )
    log.info("compare %s", drift.line, extra=display.finished("compare", drift.line))
    return drift


@task(task_run_name="start a run", cache_policy=NO_CACHE)
def start_run(deployment: str, parameters: dict[str, Any], drift: Drift) -> tuple[FlowRun, bool]:
    """Start a run of a deployment for what was found, unless there is one; return it, and whether it is new.

    A run that another one has started, such as the event of the new version, counts unless it failed or was cancelled.
    One that this flow has started counts in any case: what was found is not started again each night.

    Raises:
        ConfigError: the deployment does not exist.
    """
    key = f"watch:{drift.identity}:{drift.production.release}"
    own = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    revisions = {parameters.get("revision"), drift.newer} - {None}
    with get_client(sync_client=True) as client:
        if before := client.read_flow_runs(flow_run_filter=own):
            return before[0], False
    if "revision" in parameters:
        for other in _runs_of_align(drift.newer):
            if other.parameters.get("revision") in revisions and other.state_type not in _ENDED_IN_VAIN:
                return other, False
    try:
        run: FlowRun = run_deployment(  # type: ignore[assignment]  # a coroutine only in asynchronous code
            deployment, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key
        )
    except ObjectNotFound:
        raise ConfigError(
            f"there is no deployment {deployment} to start: 'prefect deploy --prefect-file pipelines.yaml --all' makes it; "
            "or compare without starting a run (start: false)"
        ) from None
    return run, True


def _runs_of_align(tag: str) -> Iterator[FlowRun]:
    """Yield the runs of the flow align since a data version was tagged, with a day for clocks that differ."""
    made = int(git(Path.cwd(), "log", "-1", "--format=%ct", tag))
    since = datetime.fromtimestamp(made, UTC) - timedelta(days=1)
    flows = FlowFilter(name=FlowFilterName(any_=["align"]))
    runs = FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"after_": since}))
    with get_client(sync_client=True) as client:
        offset = 0
        while found := client.read_flow_runs(
            flow_filter=flows,
            flow_run_filter=runs,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_AT_ONCE,
            offset=offset,
        ):
            yield from found
            offset += len(found)


def _command(checkout: Path, tag: str) -> str:
    """Return the command that starts a run with a version; params.yaml of the version has its other settings."""
    settings = noted(checkout, tag)[0]
    own = {key: value for key, value in settings.items() if key not in READING}
    return next_command(tag, tag.split("/")[1], settings["format"], as_options(own))


def _ended(name: str, result: WatchResult) -> "State[WatchResult]":
    get_run_logger().info("%s", result.line, extra=display.finished("watch", result.line))
    return Completed(name=name, message=result.line, data=result)
