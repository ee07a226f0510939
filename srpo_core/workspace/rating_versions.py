"""Versions of the ratings: data/ratings, tracked by DVC, pushed and compared with the remote like the other data.

A version has the finished tasks of the one before it and those of the checkout. A rater's answers that were deleted on request are
deleted from older versions, too: their objects are removed from DVC's cache and from the default remote.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from srpo_core.artifacts import read_json, write_json
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.errors import DataError
from srpo_core.rating.answers import Refused
from srpo_core.rating.expectations import check_ratings
from srpo_core.rating.forgetting import Removed, merge_directories, read_removed
from srpo_core.rating.records import Rating
from srpo_core.rating.stored import DIRECTORY, list_files, read_about, read_ratings, write_ratings
from srpo_core.runtime import file_lock
from srpo_core.workspace import data_versions
from srpo_core.workspace.data_remote import directory_hash, open_repository, remove_objects
from srpo_core.workspace.data_view import known_tags, open_version
from srpo_core.workspace.git import git, try_git
from srpo_core.workspace.worktree import RUNS, Workspace

NAME: Final = "ratings"
FORMAT: Final = "ratings"  # in place of a format of ingest, which does not read ratings
QUARANTINE: Final = "ratings-quarantine.jsonl"
UNANNOUNCED: Final = "ratings-unannounced.json"  # while events of a version are not sent yet


@dataclass(frozen=True)
class RatingsChecked:
    """What a version of the ratings contains.

    tasks, raters, answers: their numbers. refused: by rule, what was set aside. removed: what was deleted on request, in all.
    set_aside: the file with the answers that were set aside; None if none was.
    """

    tasks: int
    raters: int
    answers: int
    refused: dict[str, int]
    removed: Removed
    set_aside: Path | None

    def __str__(self) -> str:
        text = f"{self.answers} answers of {self.raters} raters to {self.tasks} tasks"
        return f"{text}; {self.removed}" if self.removed.answers else text


def newest_tag(checkout: Path) -> str | None:
    """Return the tag of the newest version of the ratings; None without one, or outside a git checkout."""
    if try_git(checkout, "rev-parse", "--git-dir") is None:
        return None
    return next((tag for tag in known_tags(checkout) if tag.startswith(f"data/{NAME}/")), None)


def fetch_newest(checkout: Path, target: Path) -> None:
    """Copy the tasks of the newest version to a directory that lacks them, or has them with answers that were deleted there."""
    tag = newest_tag(checkout)
    if tag is None:
        return
    with open_version(checkout, tag) as version:
        merged = target.with_name(f".{target.name}.merged")
        shutil.rmtree(merged, ignore_errors=True)
        merge_directories(version.path, target, merged)
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(merged.iterdir()):
            path.replace(target / path.name)
        merged.rmdir()


def count_newest(checkout: Path) -> int:
    """Count the answers of the newest version; 0 without one."""
    tag = newest_tag(checkout)
    if tag is None:
        return 0
    with open_version(checkout, tag) as version:
        return len(read_ratings(list_files(version.path), refused=Refused()))


def count_announced(workspace: Workspace) -> int:
    """Count the answers of the last version whose events were sent: of the newest one, unless a run died before it sent them."""
    note = workspace.home / "data" / UNANNOUNCED
    return int(read_json(note)["before"]) if note.is_file() else count_newest(workspace.checkout)


def note_unannounced(workspace: Workspace, before: int) -> None:
    """Note, before a version is tagged, how many answers there were at the last events; it holds until `note_announced`."""
    write_json(workspace.home / "data" / UNANNOUNCED, {"before": before})


def note_announced(workspace: Workspace) -> None:
    """Note that the events of the newest version were sent."""
    (workspace.home / "data" / UNANNOUNCED).unlink(missing_ok=True)


def collect(workspace: Workspace, source: Path) -> None:
    """Put the finished tasks of `source` and of the newest version below data/ratings of the workspace.

    Raises:
        DataError: there is none.
    """
    target = workspace.path / DIRECTORY
    shutil.rmtree(target, ignore_errors=True)
    fetch_newest(workspace.checkout, target)
    merged = workspace.path / f".{NAME}"
    merge_directories(target, source, merged)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    merged.replace(target)
    if not list_files(target):
        raise DataError(f"{source} has no finished task: 'srpo rate finish TASK' writes one")


def check(workspace: Workspace) -> RatingsChecked:
    """Set aside and count the answers that break a rule, and check the table of all others.

    Raises:
        DataError: a file is damaged, or no answer is left.
    """
    directory, refused = workspace.path / DIRECTORY, Refused()
    everything: list[Rating] = []
    for path in list_files(directory):
        before = len(refused.entries)
        ratings = read_ratings([path], refused=refused)
        if len(refused.entries) > before:
            write_ratings(path, ratings, read_about(path))
        everything += ratings
    check_ratings(everything)
    kept = workspace.home / "data" / QUARANTINE
    kept.unlink(missing_ok=True)
    if refused.entries:
        refused.write(kept)
    return RatingsChecked(
        tasks=len(list_files(directory)),
        raters=len({one.rater for one in everything}),
        answers=len(everything),
        refused=dict(refused.counts),
        removed=read_removed(directory),
        set_aside=kept if refused.entries else None,
    )


def commit(workspace: Workspace, tag: str, checked: RatingsChecked) -> None:
    """Commit and tag the version, unless it is tagged; the message says how many answers of how many raters were removed."""
    findings: dict[str, object] = {
        rule: {"severity": "critical", "found": number, "set_aside": number}
        for rule, number in checked.refused.items()
    }
    if checked.removed.answers:
        findings["removed_on_request"] = {
            "answers": checked.removed.answers,
            "raters": checked.removed.raters,
        }
    data_versions.commit(workspace, NAME, tag, {"format": FORMAT}, findings)


def remove_replaced(workspace: Workspace, tag: str) -> int:
    """Delete the files of older versions that the version replaces, from DVC's cache and the default remote; return their number.

    A task's file is replaced only if answers were deleted from it. Older versions then lack that file for good.
    """
    with open_repository(workspace) as repo:
        cache = repo.cache.local
        files = _files(Path(cache.oid_to_path(directory_hash(workspace, NAME))))
        replaced: set[str] = set()
        for other in known_tags(workspace.checkout):
            if other.startswith(f"data/{NAME}/") and other != tag:
                pointer = git(workspace.checkout, "show", f"{other}:data/{NAME}.dvc")
                manifest = Path(cache.oid_to_path(_directory_of(pointer)))
                older = _files(manifest) if manifest.is_file() else {}
                replaced |= {
                    oid
                    for name, oid in older.items()
                    if name.endswith(".parquet") and name in files and oid != files[name]
                }
        replaced -= set(files.values())
        for oid in replaced:
            Path(cache.oid_to_path(oid)).unlink(missing_ok=True)
    remove_objects(workspace, sorted(replaced))
    return len(replaced)


def remove_copies(workspace: Workspace) -> None:
    """Delete the ratings in this workspace and in those of runs that ended: workspaces are kept, and a copy would keep answers."""
    for run in (workspace.home / RUNS).iterdir():
        copy = run / "workspace" / DIRECTORY
        if run.name == workspace.run_id or not file_lock.is_held(run / "lock"):
            shutil.rmtree(copy, ignore_errors=True)


def _directory_of(pointer: str) -> str:
    return str(parse_yaml(pointer, f"data/{NAME}.dvc")["outs"][0]["md5"])


def _files(manifest: Path) -> dict[str, str]:
    entries: Sequence[dict[str, str]] = json.loads(manifest.read_text(encoding="utf-8"))
    return {entry["relpath"]: entry["md5"] for entry in entries}
