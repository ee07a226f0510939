"""Prefect flows for published releases: releases, show, promote, rollback, verify, pull, gc.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of each flow.
"""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.notices import notify_failure, send_in_run, warn_of_channels
from srpo_core.errors import StoreError
from srpo_core.release import aliases, download, summary
from srpo_core.release import verify as verification
from srpo_core.release.gc import GarbageCollection, collect_garbage
from srpo_core.release.guard import guarded_store
from srpo_core.release.notices import damage_message, move_message
from srpo_core.release.trust import trust_here
from srpo_core.report.text import markdown_code, markdown_text
from srpo_core.runtime.notifications import Kind
from srpo_core.storage import Store, open_store


@flow(name="releases")
def releases() -> list[str]:
    """List all published versions, oldest first."""
    found = summary.list_releases(open_store(), signatures=True)
    table = [
        f"| `{line.version}` | {line.created_at} | {', '.join(line.aliases)} | {', '.join(line.formats)} "
        f"| {line.num_bytes / 1e6:.1f} "
        f"| {markdown_text(line.signature)} |"
        if line.fault is None
        else f"| `{line.version}` | unreadable: {markdown_text(line.fault)} | {', '.join(line.aliases)} | | | |"
        for line in found
    ]
    create_markdown_artifact(
        "\n".join(
            ["| release | made | aliases | formats | MB | signature |", "|---|---|---|---|---:|---|", *table]
        ),
        key="releases",
        description="all published versions",
    )
    return [line.version for line in found]


@flow(name="show")
def show(version: str = "candidate") -> list[str]:
    """Show a release: its verdict, signature, formats with their errors, and the moves of its aliases.

    Args:
        version: a version or an alias.
    """
    lines = list(summary.describe(open_store(), version))
    create_markdown_artifact(markdown_code(lines), key="release", description=lines[0])
    return lines


@flow(
    name="promote",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def promote(version: str, reason: str = "", override: bool = False) -> aliases.Move:
    """Point the alias `production` of its model to a release; `previous` then points to the former one.

    Args:
        version: a version, or an alias such as candidate or <model>/candidate.
        reason: recorded in the history of production.
        override: promote although the gate refused the release; requires a reason.
    """
    store = guarded_store()
    move = aliases.promote(store, version, reason=reason, override=override)
    return _report_move(Kind.PROMOTED, store, move, reason)


@flow(
    name="rollback",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def rollback(model: str | None = None, reason: str = "") -> aliases.Move:
    """Move the alias production back to the previous release. Safe to repeat.

    Args:
        model: the model whose production moves; required if the store has several.
        reason: recorded in the history of production.
    """
    store = guarded_store()
    move = aliases.rollback(store, model=model, reason=reason)
    return _report_move(Kind.ROLLED_BACK, store, move, reason)


@flow(
    name="verify",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def verify(version: str | None = None) -> dict[str, str]:
    """Read releases back and compare every file with its SHA-256; fails if one is damaged.

    Args:
        version: a version or an alias; empty verifies every version and alias in the store.
    """
    store, trust = open_store(), trust_here()
    states, faults = {}, [] if version else verification.verify_aliases(store)
    table = [f"| alias | {markdown_text(str(fault))} |" for fault in faults]
    for name in [version] if version else store.versions():
        try:
            manifest, state = verification.inspect(store, name, trust)
            states[name] = f"{len(manifest['files'])} files are intact, {state}"
        except StoreError as error:
            states[name] = str(error)
            faults.append(error)
        table.append(f"| `{name}` | {markdown_text(states[name])} |")
    create_markdown_artifact(
        "\n".join(["| release | state |", "|---|---|", *table]),
        key="verify",
        description="state of the store",
    )
    for fault in faults:
        get_run_logger().error("%s", fault)
    if faults:
        raise verification.joined(faults)
    return states


@flow(name="pull")
def pull(version: str, to: str, format_name: str | None = None, force: bool = False) -> list[str]:
    """Download a release's files to a directory of the worker and verify each SHA-256.

    Args:
        version: a version or an alias.
        to: directory to write to.
        format_name: one of the release's formats; empty downloads all files.
        force: also replace files that are not from an earlier pull.
    """
    paths = download.pull(open_store(), version, format_name=format_name, target=Path(to), force=force)
    return [str(path) for path in paths]


@flow(
    name="gc",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def gc(keep: int, delete: bool = False) -> GarbageCollection:
    """List old releases, or remove them with `delete`. Those with an alias or once in production are kept.

    Args:
        keep: number of newest versions to keep of each model.
        delete: actually remove them; otherwise they are only listed.
    """
    store = open_store()
    garbage = collect_garbage(store, keep=keep, delete=delete)
    state = "removed" if garbage.deleted else "would be removed"
    for name in (*garbage.versions, *garbage.leftovers):
        get_run_logger().info("%s %s", name, state)
    for fault in garbage.unreadable:
        get_run_logger().warning("kept %s", fault)
    if garbage.unreadable:
        send_in_run(damage_message(store, garbage.unreadable))
    return garbage


def _report_move(kind: Kind, store: Store, move: aliases.Move, reason: str) -> aliases.Move:
    create_markdown_artifact(
        f"`{move.alias}`: `{move.before or 'nothing'}` → `{move.after}`",
        key="production",
        description="the release in production",
    )
    if message := move_message(kind, store, move, reason):
        send_in_run(message)
    return move
