"""A new version of the data as a Prefect flow: collect, check, push, tag.

No `from __future__ import annotations` here: Prefect reads the annotations to make its form.
"""

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows import display
from srpo_core.workspace import data_versions
from srpo_core.workspace.worktree import Workspace, open_workspace


@flow(name="data")
def data(source: str, name: str = "hpd") -> str:
    """Make a new version of the data and return its tag, for `align(revision=tag)`.

    Args:
        source: directory in HPDv2's layout (train.json, test.json, benchmark/*.json, images).
        name: name of the data set, a directory below data/.
    """
    data_versions.require_name(name)
    given = Path(source).absolute()
    with open_workspace(Path.cwd(), revision="HEAD") as workspace:
        collect(workspace, given, name)
        check(workspace, name)
        tag = push(workspace, name)
        record(workspace, name, tag)
    create_markdown_artifact(
        f"`{tag}` from `{given}`\n\nNext: `align` with revision `{tag}` and ingest.source `data/{name}`",
        key="data",
        description="a new version of the data",
    )
    return tag


@task(cache_policy=NO_CACHE)
def collect(workspace: Workspace, source: Path, name: str) -> None:
    """Bring the source into the workspace as few large files."""
    _began("collect", f"{source} as data/{name}")
    data_versions.collect(source, workspace.path / "data" / name)
    _ended("collect", "done")


@task(cache_policy=NO_CACHE)
def check(workspace: Workspace, name: str) -> None:
    """Hold the data to the rules of stage ingest."""
    _began("check", "the rules of stage ingest")
    log = get_run_logger()
    data_versions.check(workspace, name, lambda line: log.info("%s", line, extra=display.said()))
    _ended("check", "every record is good")


@task(cache_policy=NO_CACHE)
def push(workspace: Workspace, name: str) -> str:
    """Track the data, push them, and see that the remote has all of them; return the tag."""
    _began("push", "to the default remote")
    tag = data_versions.track(workspace, name)
    data_versions.push(workspace, name)
    _ended("push", "the remote has every file")
    return tag


@task(cache_policy=NO_CACHE)
def record(workspace: Workspace, name: str, tag: str) -> None:
    """Tag the version, unless it has been tagged before."""
    _began("record", tag)
    known = data_versions.is_tagged(workspace, tag)
    data_versions.commit(workspace, name, tag)
    note = f"known already; with today's code: git checkout {tag} -- data/{name}.dvc, then 'srpo align'"
    _ended(
        "record",
        note
        if known and not data_versions.is_tag_of_head(workspace, tag)
        else "known already"
        if known
        else "tagged",
    )


def _began(name: str, description: str) -> None:
    get_run_logger().info("%s: %s", name, description, extra=display.began(name, description))


def _ended(name: str, note: str) -> None:
    get_run_logger().info("%s %s", name, note, extra=display.ended(name, note))
