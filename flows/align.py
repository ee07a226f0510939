"""The whole pipeline as a Prefect flow: one task per stage of dvc.yaml, then publishing.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of the flow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.transactions import Transaction, get_transaction, transaction
from prefect.utilities.annotations import quote

from flows import approval, display
from flows.align_result import AlignResult, show_artifacts, store_report
from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.form import Profile, SettingsPatch
from flows.live_progress import StepProgress
from flows.notices import notify_alarm, notify_failure, notify_stall, notify_verdict, warn_of_channels
from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, load_settings, write_settings
from srpo_core.errors import StageError
from srpo_core.preflight.consistency import require_consistent
from srpo_core.preflight.weight_files import require_readable_weights
from srpo_core.release import publishing, verify
from srpo_core.release.links import store_url
from srpo_core.release.references import in_production
from srpo_core.report.full_report import write_whole
from srpo_core.runtime.costs import RunCost
from srpo_core.runtime.dvc_yaml import Stage
from srpo_core.storage import open_store, require_conditions, require_publishable
from srpo_core.workspace.inputs import input_paths, link_inputs, require_inputs
from srpo_core.workspace.recording import recorded
from srpo_core.workspace.reproduce import StageResult, reproduce
from srpo_core.workspace.run_record import AWAITING_APPROVAL
from srpo_core.workspace.stage_graph import read_graph
from srpo_core.workspace.worktree import (
    Workspace,
    bring_home,
    fetch_data,
    has_settings_of_checkout,
    open_workspace,
)


@flow(
    name="align",
    validate_parameters=True,
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def align(
    profile: Profile | None = "tiny",
    patch: SettingsPatch = SettingsPatch(),  # noqa: B008  # the empty form
    revision: str | None = None,
    publish: bool = True,
    require_approval: bool = False,
    approval_hours: float = 72,
) -> "State[AlignResult]":
    """Align a model, from data to release.

    Args:
        profile: preset of the settings in profiles/; empty uses params.yaml.
        patch: settings that differ from the preset; an empty field keeps the preset's value.
        revision: commit, branch or tag to run; empty uses the checkout, including uncommitted changes.
        publish: publish the model if it passes the gate.
        require_approval: suspend the run after publishing, until somebody approves or rejects the release in a form.
        approval_hours: time to decide; after it the release stays a candidate.
    """
    request = approval.own_request()
    if request is None:  # otherwise this run was suspended after its stages, and is resumed
        if require_approval:
            approval.require_possible(publish=publish, hours=approval_hours)
        hours = approval_hours if require_approval else None
        result, request = run_to_release(profile, patch, revision, publish=publish, approval_hours=hours)
    if request is not None:
        return approval.decide(request)
    return Completed(
        name="Completed" if result.passed else "Refused",
        message=f"{'passed' if result.passed else 'refused'}: {result.reason}",
        data=result,
    )


def run_to_release(
    profile: str | None,
    patch: SettingsPatch,
    revision: str | None,
    *,
    publish: bool,
    approval_hours: float | None,
) -> tuple[AlignResult, approval.Request | None]:
    """Run all stages in a workspace and publish; return the outcome, and what a person shall decide, if anything.

    approval_hours: time to decide about a release; None: it needs no approval. See `align` for the others.
    """
    with (
        open_workspace(Path.cwd(), revision=revision) as workspace,
        recorded(workspace, profile=profile, flow_run=flow_run.id, flow_run_name=flow_run.name) as record,
    ):
        changes = patch.model_dump(mode="json", exclude_none=True)
        settings = write_settings(workspace.path, profile=profile, patch=changes)
        require_consistent(settings)
        require_inputs(workspace.checkout, settings, revision=revision)
        link_inputs(workspace, input_paths(settings).values(), revision=revision)
        store_url()  # an address that cannot be used is reported before hours of work
        if publish:
            require_publishable(open_store(), accepted=settings.release.unconditional_store)
        # stages know only immutable versions, so the flow writes the version of the alias into the settings
        champion = in_production(open_store(), settings.release.name) if settings.champion is None else None
        plain = has_settings_of_checkout(workspace)
        if champion:  # written after the comparison above, and validated again because one key has changed
            write_settings(workspace.path, profile=None, patch={"champion": champion})
        record.note_settings()
        display.announce(get_run_logger(), workspace, publish=publish)
        results, ended = run_stages(workspace)
        decision = artifacts.read_json(workspace.path / artifacts.DECISION)
        home = revision is None and bring_home(workspace, [result.stage for result in results])
        report = (workspace.home if home else workspace.path.parent) / artifacts.REPORT.name
        cached = [result.stage for result in results if result.cached]
        cost = write_whole(report, root=workspace.path, home=workspace.home, cached=cached)
        links = store_report(workspace, report, record.note_report)
        published = publish_release(workspace, cost, ended) if publish and decision["passed"] else None
        record.release = published.uri if published else None
        result = AlignResult(
            passed=decision["passed"],
            reason=decision["reason"],
            report=report,
            links=links,
            release=record.release,
            stages=tuple(results),
            workspace=workspace.path,
            home=home,
            champion=champion if plain else None,
            cost=cost,
        )
        show_artifacts(result, decision)
        notify_verdict(settings.release.name, result, published)
        request = None
        if published and approval_hours is not None:
            request = approval.ask(published, verdict=result.reason, hours=approval_hours)
        if request:
            record.state = AWAITING_APPROVAL
        return result, request


def run_stages(workspace: Workspace) -> tuple[list[StageResult], list[State[StageResult]]]:
    """Run the stages of the workspace's dvc.yaml in order; skip those that need a passed decision if the gate refused.

    Each task waits for those whose outputs it reads: the edges of the run's graph in the UI. Returns the results, and the
    states of the stages whose outputs no other one reads.
    """
    graph = read_graph(workspace.path)
    fetch_data(workspace, graph.data)
    require_readable_weights(load_settings(workspace.path / PARAMS_FILE), workspace.path)
    results: list[StageResult] = []
    states: dict[str, State[StageResult]] = {}
    for stage in graph.stages:
        if stage.needs_passed and not artifacts.read_json(workspace.path / artifacts.DECISION)["passed"]:
            get_run_logger().info(
                "%s skipped: the gate refused the model",
                stage.name,
                extra=display.skipped(stage.name, "skipped: the gate refused the model"),
            )
            continue
        as_task = run_stage.with_options(
            name=stage.name, task_run_name=stage.name, description=stage.description
        )
        read = [states[other.name] for other in graph.stages if other.name in states and stage.reads(other)]
        # the task returns the state in which it ends, so Prefect gives this state and not one that holds it
        ended = as_task(workspace, stage, return_state=True, wait_for=read)
        states[stage.name] = cast("State[StageResult]", ended)
        results.append(states[stage.name].result())
        notify_alarm(workspace, results[-1])
    ran = [stage for stage in graph.stages if stage.name in states]
    return results, [states[one.name] for one in ran if not any(other.reads(one) for other in ran)]


@task(cache_policy=NO_CACHE)
def run_stage(workspace: Workspace, stage: Stage) -> "State[StageResult]":
    """Run one stage with DVC and stream its output to the log; an unchanged stage ends as `Cached`."""
    log = get_run_logger()
    log.info("%s: %s", stage.name, stage.description, extra=display.started(stage.name, stage.description))
    rule = load_settings(workspace.path / PARAMS_FILE).train.early_stop
    progress = StepProgress(stage.name, threshold=1 / rule.alpha if rule else None)

    def show(line: str) -> None:
        log.info("%s", line, extra=display.output())
        progress.see(line)
        notify_stall(workspace, line)

    try:
        result = reproduce(workspace, stage.name, show)
    except StageError as error:
        log.error("%s", error, extra=display.failed(stage.name))  # noqa: TRY400  # one line; Prefect adds the traceback
        raise
    note = f"{'cached' if result.cached else 'done'} in {result.seconds:.1f} s"
    log.info("%s %s", stage.name, note, extra=display.finished(stage.name, note))
    return Completed(name="Cached" if result.cached else "Completed", message=note, data=result)


def publish_release(
    workspace: Workspace, cost: RunCost | None, ended: Sequence[State[StageResult]]
) -> publishing.Published:
    """Publish the results of a workspace and verify them in the store; withdrawn if verifying fails.

    ended: the stages after which this is drawn in the UI. The cost is quoted, because Prefect would draw an edge from
    every stage whose name is in it.
    """
    with transaction():
        published = publish_run(workspace, quote(cost), wait_for=ended)
        verify_release(published)
    return published


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish_run(workspace: Workspace, cost: RunCost | None) -> publishing.Published:
    """Publish to the store of `SRPO_STORE` and point the alias `candidate` to the version."""
    log = get_run_logger()
    store = open_store()
    log.info("publish: to %s", store.uri, extra=display.started("publish", f"to {store.uri}"))
    published = publishing.publish(store, root=workspace.path, why=f"run {workspace.run_id}", cost=cost)
    current = get_transaction()
    assert current is not None, "Prefect opens a transaction for each task"
    current.set("published", published)
    note = published.version if published.created else f"{published.version} exists already"
    log.info("publish %s", note, extra=display.finished("publish", note))
    return published


@publish_run.on_rollback
def withdraw_release(undone: Transaction) -> None:
    """Withdraw a release that could not be verified."""
    store = open_store()
    require_conditions(store, accepted=True)  # publishing has already checked what the settings accept
    publishing.withdraw(store, undone.get("published"))


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE)
def verify_release(published: publishing.Published) -> None:
    """Read every file of the release back and compare it with its SHA-256."""
    log = get_run_logger()
    log.info("verify: read every file back", extra=display.started("verify", "read every file back"))
    manifest = verify.verify(open_store(), published.version)
    note = f"{len(manifest['files'])} files are intact"
    log.info("verify %s", note, extra=display.finished("verify", note))
