"""Make a new version of people's ratings as a Prefect flow: collect, check, push, tag.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of the flow.
"""

from pathlib import Path
from typing import Final

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows import display
from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.notices import notify_failure, warn_of_channels
from srpo_core.rating.stored import DIRECTORY
from srpo_core.workspace import data_versions, rating_versions
from srpo_core.workspace.data_remote import AuditDepth
from srpo_core.workspace.rating_versions import NAME, RatingsChecked
from srpo_core.workspace.worktree import Workspace, open_workspace

PUBLISHED: Final = "ratings.version.published"
ENOUGH: Final = "ratings.enough"


@flow(
    name="ratings",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def ratings(source: str | None = None, audit: AuditDepth = "md5", enough: int = 200) -> str:
    """Make a new version of the ratings and return its tag.

    Args:
        source: directory with the files of finished tasks; default: data/ratings.
        audit: how the remote is compared after the push: md5 believes an MD5 that the store reports, full reads all bytes.
        enough: the event that can start a retraining is emitted each time so many further answers have come.
    """
    given = Path(source).absolute() if source else Path.cwd() / DIRECTORY
    with open_workspace(Path.cwd(), revision="HEAD") as workspace:
        before = rating_versions.count_announced(workspace)
        collect(workspace, given)
        checked = check(workspace)
        tag = push(workspace, audit)
        rating_versions.note_unannounced(workspace, before)
        record(workspace, tag, checked)
        rating_versions.remove_copies(workspace)
        announce(workspace, tag, checked, before=before, enough=enough)
        rating_versions.note_announced(workspace)
    return tag


@task(task_run_name="collect", cache_policy=NO_CACHE)
def collect(workspace: Workspace, source: Path) -> None:
    """Collect the finished tasks of the checkout and of the newest version."""
    _log_start("collect", f"{source} as data/{NAME}")
    rating_versions.collect(workspace, source)
    _log_end("collect", "done")


@task(task_run_name="check", cache_policy=NO_CACHE)
def check(workspace: Workspace) -> RatingsChecked:
    """Set aside and count the answers that break a rule."""
    _log_start("check", "every answer")
    checked = rating_versions.check(workspace)
    broken = [f"{rule} {number}" for rule, number in sorted(checked.refused.items())]
    note = f"{checked}; answers break rules: {', '.join(broken)}" if broken else f"{checked}; all are valid"
    if checked.set_aside:
        note += f"; those set aside are in {checked.set_aside}"
    _log_end("check", note)
    return checked


@task(task_run_name="push", cache_policy=NO_CACHE)
def push(workspace: Workspace, audit: AuditDepth) -> str:
    """Track the ratings with DVC, push them, verify that the remote has every file, and return the tag."""
    _log_start("push", "to the default remote")
    tag = data_versions.track(workspace, NAME)
    compared = data_versions.push(workspace, NAME, audit)
    _log_end("push", f"the remote has every file: {compared}")
    return tag


@task(task_run_name="record", cache_policy=NO_CACHE)
def record(workspace: Workspace, tag: str, checked: RatingsChecked) -> None:
    """Tag the version, and delete the files of older versions from which answers were deleted."""
    _log_start("record", tag)
    known = data_versions.is_tagged(workspace, tag)
    rating_versions.commit(workspace, tag, checked)
    removed = rating_versions.remove_replaced(workspace, tag)
    note = "tagged already" if known else "tagged"
    _log_end("record", f"{note}; {removed} files of older versions deleted" if removed else note)


@task(task_run_name="announce", cache_policy=NO_CACHE)
def announce(workspace: Workspace, tag: str, checked: RatingsChecked, *, before: int, enough: int) -> None:
    """Emit the event of a new version, and the one that can start a retraining whenever `enough` further answers have come.

    before: number of answers of the last version whose events were sent. Small versions add up: the event comes at each multiple of `enough`.
    """
    payload = {
        "tag": tag,
        "rev": data_versions.commit_of(workspace, tag),
        "tasks": checked.tasks,
        "raters": checked.raters,
        "answers": checked.answers,
        "new_answers": max(0, checked.answers - before),
    }
    resource = {
        "prefect.resource.id": f"ratings.version.{tag}",
        "prefect.resource.name": tag,
        "hpd.name": NAME,
    }
    emit_event(PUBLISHED, resource=resource, payload=payload)
    if checked.answers // enough > before // enough:
        emit_event(ENOUGH, resource=resource, payload=payload)


def _log_start(name: str, description: str) -> None:
    get_run_logger().info("%s: %s", name, description, extra=display.started(name, description))


def _log_end(name: str, note: str) -> None:
    get_run_logger().info("%s %s", name, note, extra=display.finished(name, note))
