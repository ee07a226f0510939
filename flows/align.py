"""The whole road as a Prefect flow: one task per stage of dvc.yaml, then publishing.

No `from __future__ import annotations` here: Prefect reads the annotations to make its form.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.transactions import Transaction, get_transaction, transaction

from flows import display
from flows.form import SettingsPatch
from srpo_core import artifacts, release
from srpo_core.config import write_settings
from srpo_core.errors import StageError
from srpo_core.preflight.consistency import require_consistent
from srpo_core.report.full_report import write_whole
from srpo_core.runtime.dvc_yaml import Stage
from srpo_core.storage import open_store, require_conditions
from srpo_core.workspace.reproduce import StageResult, reproduce
from srpo_core.workspace.stage_graph import read_graph
from srpo_core.workspace.worktree import (
    Workspace,
    bring_home,
    fetch_data,
    has_settings_of_checkout,
    open_workspace,
)


@dataclass(frozen=True)
class AlignResult:
    """What a run came to.

    passed, reason: the gate's verdict; report: the page to look at, with formats and cost; release: where it
    was published, if it was; stages: how each stage that ran ended; workspace: where everything lies; home:
    whether the results were brought to the checkout; champion: what is in production and was drawn beside the base,
    where this alone makes the run's settings others than the checkout's.
    """

    passed: bool
    reason: str
    report: Path
    release: str | None
    stages: tuple[StageResult, ...]
    workspace: Path
    home: bool
    champion: str | None = None


@flow(name="align", validate_parameters=True)
def align(
    profile: str | None = "tiny",
    patch: SettingsPatch = SettingsPatch(),  # noqa: B008  # the empty form
    revision: str | None = None,
    publish: bool = True,
) -> "State[AlignResult]":
    """Align a model from data to release.

    Args:
        profile: preset of the settings in profiles/; none takes params.yaml as it stands.
        patch: settings that differ from the preset; an empty entry keeps the preset's value.
        revision: commit, branch or tag to run; none takes the checkout as it is, uncommitted changes included.
        publish: publish a model that the gate lets through.
    """
    with open_workspace(Path.cwd(), revision=revision) as workspace:
        changes = patch.model_dump(mode="json", exclude_none=True)
        settings = write_settings(workspace.path, profile=profile, patch=changes)
        require_consistent(settings)
        champion = in_production(settings.release.name) if settings.champion is None else None
        plain = has_settings_of_checkout(workspace)
        if champion:
            write_settings(workspace.path, profile=None, patch={"champion": champion})
        results = run_stages(workspace)
        decision = artifacts.read_json(workspace.path / artifacts.DECISION)
        home = revision is None and bring_home(workspace, [result.stage for result in results])
        report = (workspace.home if home else workspace.path.parent) / artifacts.REPORT.name
        write_whole(report, root=workspace.path, home=workspace.home)
        uri = publish_release(workspace, results) if publish and decision["passed"] else None
        result = AlignResult(
            passed=decision["passed"],
            reason=decision["reason"],
            report=report,
            release=uri,
            stages=tuple(results),
            workspace=workspace.path,
            home=home,
            champion=champion if plain else None,
        )
        show_artifacts(result, decision)
        return Completed(
            name="Completed" if result.passed else "Refused",
            message=f"{'passed' if result.passed else 'refused'}: {result.reason}",
            data=result,
        )


def in_production(model: str) -> str | None:
    """The version of `model` that its alias production names now; None where nothing is in production.

    It goes into the settings as the champion: stages know only immutable versions.
    """
    value, _ = open_store().alias(f"{model}/{release.PRODUCTION}")
    return value.get("version") if value else None


def run_stages(workspace: Workspace) -> list[StageResult]:
    """Run the stages of the workspace's dvc.yaml in order; a refused model skips those that need a passed one."""
    graph = read_graph(workspace.path)
    fetch_data(workspace, graph.data)
    results: list[StageResult] = []
    for stage in graph.stages:
        if stage.needs_passed and not artifacts.read_json(workspace.path / artifacts.DECISION)["passed"]:
            get_run_logger().info(
                "%s left out: the gate refused",
                stage.name,
                extra=display.left_out(stage.name, "left out, as the gate refused"),
            )
            continue
        as_task = run_stage.with_options(
            name=stage.name, task_run_name=stage.name, description=stage.description
        )
        results.append(as_task(workspace, stage).result())
    return results


@task(cache_policy=NO_CACHE)
def run_stage(workspace: Workspace, stage: Stage) -> "State[StageResult]":
    """Run one stage by DVC, its output streamed into the log; unchanged is shown as cached."""
    log = get_run_logger()
    log.info("%s: %s", stage.name, stage.description, extra=display.began(stage.name, stage.description))
    try:
        result = reproduce(workspace, stage.name, lambda line: log.info("%s", line, extra=display.said()))
    except StageError as error:
        log.error("%s", error, extra=display.failed(stage.name))  # noqa: TRY400  # one line, Prefect adds the trace
        raise
    note = f"{'cached' if result.cached else 'done'} in {result.seconds:.1f} s"
    log.info("%s %s", stage.name, note, extra=display.ended(stage.name, note))
    return Completed(name="Cached" if result.cached else "Completed", message=note, data=result)


def publish_release(workspace: Workspace, results: Sequence[StageResult]) -> str:
    """Publish what the workspace made, read it back, return where it is; undone if reading it back fails."""
    with transaction():
        published = publish_run(workspace, {result.stage: round(result.seconds, 1) for result in results})
        verify_release(published)
    return published.uri


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish_run(workspace: Workspace, stage_seconds: dict[str, float]) -> release.Published:
    """Publish to the store of `SRPO_STORE` and point the alias `candidate` there."""
    log = get_run_logger()
    store = open_store()
    log.info("publish: to %s", store.uri, extra=display.began("publish", f"to {store.uri}"))
    published = release.publish(
        store, root=workspace.path, why=f"run {workspace.run_id}", cost={"stage_seconds": stage_seconds}
    )
    current = get_transaction()
    assert current is not None, "Prefect opens a transaction for each task"
    current.set("published", published)
    note = published.version if published.created else f"{published.version} is there already"
    log.info("publish %s", note, extra=display.ended("publish", note))
    return published


@publish_run.on_rollback
def withdraw_release(undone: Transaction) -> None:
    """Take back a release that could not be read back."""
    store = open_store()
    require_conditions(store, accepted=True)  # it was accepted when this was published
    release.withdraw(store, undone.get("published"))


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE)
def verify_release(published: release.Published) -> None:
    """Read every file of the release back and compare it with its digest."""
    log = get_run_logger()
    log.info("verify: reads it back", extra=display.began("verify", "reads every file back"))
    manifest = release.verify(open_store(), published.version)
    note = f"{len(manifest['files'])} files as published"
    log.info("verify %s", note, extra=display.ended("verify", note))


def show_artifacts(result: AlignResult, decision: Mapping[str, Any]) -> None:
    """Leave verdict and stages, the gate's rules and the before/after grid in Prefect's UI."""
    create_markdown_artifact(markdown(result), key="align", description="verdict and stages of a run")
    if rules := decision.get("rules"):
        create_table_artifact(
            rule_rows(rules), key="gate", description=f"the gate's rules: {result.reason}"[:500]
        )
    grid = result.workspace / artifacts.GRID
    if grid.is_file():
        image = base64.b64encode(grid.read_bytes()).decode()
        create_image_artifact(
            f"data:image/png;base64,{image}", key="grid", description="before above after, the same noise"
        )


def rule_rows(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The gate's rules as rows of a table: what refuses first."""
    order = {"refuses": 0, "warns": 1, "holds": 2}
    columns = ("name", "verdict", "value", "low", "high", "side", "margin", "reason")
    ranked = sorted(rules, key=lambda rule: order.get(rule["verdict"], len(order)))
    return [{column: rule[column] for column in columns} for rule in ranked]


def markdown(result: AlignResult) -> str:
    """Verdict, stages and where to look, as Markdown."""
    rows = [
        f"| {stage.stage} | {'cached' if stage.cached else 'ran'} | {stage.seconds:.1f} |"
        for stage in result.stages
    ]
    return "\n".join(
        [
            f"## {'Passed' if result.passed else 'Refused'}",
            result.reason,
            "",
            f"- report: `{result.report}`",
            f"- release: `{result.release or 'none'}`",
            f"- workspace: `{result.workspace}`",
            "",
            "| stage | how | seconds |",
            "|---|---|---:|",
            *rows,
        ]
    )
