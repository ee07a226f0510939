"""Make a new version of the data as a Prefect flow: collect, check, push, tag.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of the flow.
"""

from pathlib import Path
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows import display
from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.notices import notify_failure, warn_of_channels
from srpo_core.config import PARAMS_FILE, Settings, load_settings
from srpo_core.errors import StoreError
from srpo_core.release.links import in_markdown, keep_data_page, store_url
from srpo_core.report.data_page import page_path, write_data_page
from srpo_core.report.data_text import markdown_table
from srpo_core.storage import open_store
from srpo_core.workspace import data_versions
from srpo_core.workspace.data_remote import AuditDepth
from srpo_core.workspace.data_settings import (
    as_options,
    next_command,
    open_noted,
    run_patch,
    settings_to_note,
)
from srpo_core.workspace.data_space import require_space
from srpo_core.workspace.data_versions import Checked
from srpo_core.workspace.worktree import Workspace, open_workspace

PUBLISHED: Final = "hpd.version.published"


@flow(
    name="data",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def data(
    source: str,
    name: str = "hpd",
    format_name: str = "hpdv2",
    ingest: dict[str, Any] | None = None,
    audit: AuditDepth = "md5",
) -> str:
    """Make a new version of the data and return its tag, for `align(revision=tag)`.

    Args:
        source: directory or file of the data set, or s3://bucket/prefix.
        name: name of the data set, which becomes a directory in data/.
        format_name: format of the data set, an entry of `SOURCES` in srpo_core/data/sources.
        ingest: further settings of ingest, such as columns and test_share.
        audit: how the remote is compared after the push: md5 believes an MD5 that the store reports, full reads all bytes.
    """
    data_versions.require_name(name)
    store_url()  # an address that cannot be used is reported before the data are read
    given = source if source.startswith("s3://") else str(Path(source).absolute())
    changes = {**(ingest or {}), "format": format_name}
    with open_workspace(Path.cwd(), revision="HEAD") as workspace:
        collect(workspace, given, name, format_name)
        settings = load_settings(workspace.path / PARAMS_FILE)
        checked = check(workspace, name, changes)
        noted = settings_to_note(settings.ingest, changes)
        tag = push(workspace, name, noted, audit)
        record(workspace, name, tag, noted, checked)
        data_versions.forget_copy(given)
        announce(workspace, name, tag, checked, run_patch(name, format_name, ingest or {}))
        page, table = describe(workspace, name, tag, settings)
        link = store_page(tag, page)
    create_markdown_artifact(
        f"`{tag}` from `{given}`\n\nNext: `{next_command(tag, name, format_name, as_options(ingest or {}))}`\n\nIts page, with samples: {in_markdown(link)}\n\n{table}",
        key="data",
        description="a new version of the data",
    )
    return tag


@task(task_run_name="collect", cache_policy=NO_CACHE)
def collect(workspace: Workspace, source: str, name: str, format_name: str) -> None:
    """Pack the source into a few large files in the workspace."""
    _log_start("collect", f"{source} as data/{name}")
    require_space(workspace, source, format_name)
    data_versions.collect(data_versions.local_source(source), workspace.path / "data" / name, format_name)
    _log_end("collect", "done")


@task(task_run_name="check", cache_policy=NO_CACHE)
def check(workspace: Workspace, name: str, ingest: dict[str, Any]) -> Checked:
    """Check the data against the rules of stage ingest."""
    _log_start("check", "against the rules of stage ingest")
    log = get_run_logger()
    checked = data_versions.check(
        workspace, name, ingest, lambda line: log.info("%s", line, extra=display.output())
    )
    broken = [f"{rule} {one['found']}" for rule, one in checked.findings.items()]
    note = f"records break rules: {', '.join(broken)}" if broken else "every record is valid"
    if checked.set_aside:
        note += f"; those set aside are in {checked.set_aside}"
    _log_end("check", note)
    return checked


@task(task_run_name="push", cache_policy=NO_CACHE)
def push(workspace: Workspace, name: str, ingest: dict[str, Any], audit: AuditDepth) -> str:
    """Track the data with DVC, push it, verify that the remote has every file, and return the tag."""
    _log_start("push", "to the default remote")
    tag = data_versions.version_tag(workspace, data_versions.track(workspace, name), ingest)
    compared = data_versions.push(workspace, name, audit)
    _log_end("push", f"the remote has every file: {compared}")
    return tag


@task(task_run_name="record", cache_policy=NO_CACHE)
def record(workspace: Workspace, name: str, tag: str, ingest: dict[str, Any], checked: Checked) -> None:
    """Tag the version, unless it is tagged already."""
    _log_start("record", tag)
    known = data_versions.is_tagged(workspace, tag)
    data_versions.commit(workspace, name, tag, ingest, checked.findings)
    note = "tagged already" if known else "tagged"
    if known and not data_versions.is_tag_of_head(workspace, tag):
        note += f"; to use it with the current code: git checkout {tag} -- data/{name}.dvc, then 'srpo align'"
    _log_end("record", note)


@task(task_run_name="announce", cache_policy=NO_CACHE)
def announce(workspace: Workspace, name: str, tag: str, checked: Checked, patch: dict[str, Any]) -> None:
    """Emit the event `hpd.version.published`, from which a deployment can start a run; patch: the settings that it needs."""
    emit_event(
        PUBLISHED,
        resource={
            "prefect.resource.id": f"hpd.version.{tag}",
            "prefect.resource.name": tag,
            "hpd.name": name,
        },
        payload={
            "tag": tag,
            "rev": data_versions.commit_of(workspace, tag),
            "name": name,
            "counts": checked.counts,
            "patch": patch,
        },
    )


@task(task_run_name="describe", cache_policy=NO_CACHE)
def describe(workspace: Workspace, name: str, tag: str, settings: Settings) -> tuple[Path, str]:
    """Write the page of the version, as `srpo data show` does; return its path and its figures as Markdown."""
    _log_start("describe", "what the version contains")
    noted, findings = data_versions.noted(workspace.path, tag)
    source = open_noted(workspace.path / "data" / name, settings.ingest, noted, findings)
    page = page_path(workspace.home, tag)
    figures = write_data_page(page, source=source, tag=tag, words=settings.control_words, findings=findings)
    _log_end("describe", str(page))
    return page, markdown_table(figures)


def store_page(tag: str, page: Path) -> str:
    """Copy the page to the store, and return the link to it; if the store cannot take it, that is a warning and the path."""
    try:
        return keep_data_page(open_store(), tag, page)
    except StoreError as error:
        get_run_logger().warning("the link to the page works only on this machine: %s", error)
        return str(page)


def _log_start(name: str, description: str) -> None:
    get_run_logger().info("%s: %s", name, description, extra=display.started(name, description))


def _log_end(name: str, note: str) -> None:
    get_run_logger().info("%s %s", name, note, extra=display.finished(name, note))
