"""What happens to releases after they are published, as Prefect flows: list, show, promote, roll back, verify, pull, clean up.

No `from __future__ import annotations` here: Prefect reads the annotations to make its form.
"""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from srpo_core import release
from srpo_core.config import PARAMS_FILE, load_settings
from srpo_core.errors import StoreError
from srpo_core.release import Cleaning, Move
from srpo_core.release.summary import describe
from srpo_core.storage import Store, open_store, require_conditions


@flow(name="releases")
def releases() -> list[str]:
    """List what is published, oldest first; returns the versions."""
    found = release.list_releases(open_store())
    table = [
        f"| `{line.version}` | {line.created_at} | {', '.join(line.aliases)} | {', '.join(line.formats)} "
        f"| {line.num_bytes / 1e6:.1f} |"
        for line in found
    ]
    create_markdown_artifact(
        "\n".join(["| release | made | aliases | formats | MB |", "|---|---|---|---|---:|", *table]),
        key="releases",
        description="what is published",
    )
    return [line.version for line in found]


@flow(name="show")
def show(version: str = "candidate") -> list[str]:
    """Show a release: verdict, formats with their errors, and which aliases moved to and from it.

    Args:
        version: a version or an alias.
    """
    lines = list(describe(open_store(), version))
    create_markdown_artifact("\n".join(["```", *lines, "```"]), key="release", description=lines[0])
    return lines


@flow(name="promote")
def promote(version: str, reason: str = "", override: bool = False) -> Move:
    """Make a release its model's production; what was production becomes `previous`.

    Args:
        version: a version, or an alias such as candidate or <model>/candidate.
        reason: kept in the history of production.
        override: promote although the gate refused it; needs a reason.
    """
    return _told(release.promote(_guarded_store(), version, reason=reason, override=override))


@flow(name="rollback")
def rollback(model: str | None = None, reason: str = "") -> Move:
    """Make the release production again that was before the last promotion; given again it moves nothing.

    Args:
        model: whose production; needed where the store has that of several.
        reason: kept in the history of production.
    """
    return _told(release.rollback(_guarded_store(), model=model, reason=reason))


@flow(name="verify")
def verify(version: str | None = None) -> dict[str, str]:
    """Read releases back and hold every file to its digest; fails when one is damaged.

    Args:
        version: a version or an alias; none takes every version and alias of the store.
    """
    store = open_store()
    states, faults = {}, [] if version else release.verify_aliases(store)
    table = [f"| alias | {fault} |" for fault in faults]
    for name in [version] if version else store.versions():
        try:
            states[name] = f"{len(release.verify(store, name)['files'])} files as published"
        except StoreError as error:
            states[name] = str(error)
            faults.append(str(error))
        table.append(f"| `{name}` | {states[name]} |")
    create_markdown_artifact(
        "\n".join(["| release | state |", "|---|---|", *table]),
        key="verify",
        description="state of the store",
    )
    for fault in faults:
        get_run_logger().error("%s", fault)
    if faults:
        raise StoreError("; ".join(faults))
    return states


@flow(name="pull")
def pull(version: str, to: str, format_name: str | None = None) -> list[str]:
    """Bring a release's files to a directory of the worker, each held to its digest.

    Args:
        version: a version or an alias.
        to: directory to write to.
        format_name: one of the release's formats; none takes all files.
    """
    paths = release.pull(open_store(), version, format_name=format_name, target=Path(to))
    return [str(path) for path in paths]


@flow(name="clean")
def clean(keep: int, delete: bool = False) -> Cleaning:
    """Remove old releases; never one that an alias points to or that production has ever been.

    Args:
        keep: so many of the newest versions of each model stay in any case.
        delete: without it only what would go is listed.
    """
    cleaning = release.collect(open_store(), keep=keep, delete=delete)
    word = "removed" if cleaning.done else "would be removed"
    for name in (*cleaning.versions, *cleaning.leftovers):
        get_run_logger().info("%s %s", name, word)
    return cleaning


def _guarded_store() -> Store:
    """The store, seen to keep two writers apart, unless the settings here do without."""
    store = open_store()
    accepted = PARAMS_FILE.is_file() and load_settings().release.unconditional_store
    require_conditions(store, accepted=accepted)
    return store


def _told(move: Move) -> Move:
    create_markdown_artifact(
        f"`{move.alias}`: `{move.before or 'nothing'}` → `{move.after}`",
        key="production",
        description="where production points",
    )
    return move
