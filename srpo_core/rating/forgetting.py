"""Delete a rater's answers on request, and count what was deleted, without saying whose answers they were."""

import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from srpo_core.artifacts import read_json, write_json
from srpo_core.errors import DataError
from srpo_core.rating.answers import Refused
from srpo_core.rating.stored import (
    Key,
    answers_in,
    keep_answers,
    list_files,
    read_ratings,
    remove_answers,
)

REMOVED: Final = "removed.json"  # beside the ratings, a part of the next version


@dataclass(frozen=True)
class Removed:
    """How many answers of how many raters were deleted on request, in all."""

    answers: int = 0
    raters: int = 0

    def __str__(self) -> str:
        return f"{self.answers} answers of {self.raters} {'rater' if self.raters == 1 else 'raters'} removed on request"


def read_removed(directory: Path) -> Removed:
    """Read the counts of a directory of ratings; zero if nothing was removed."""
    path = directory / REMOVED
    return Removed(**read_json(path)) if path.is_file() else Removed()


def forget_rater(directory: Path, rater: str, databases: Mapping[str, Path]) -> dict[str, int]:
    """Delete the answers of a rater from the files of a directory and from the databases of tasks; return their number by task.

    databases: `answers.sqlite` by task. The counts in `REMOVED` rise.

    Raises:
        DataError: nobody of this name has answered; or a file is damaged.
    """
    found: dict[str, int] = {}
    for path in list_files(directory):
        number = remove_answers(path, rater)
        if number:
            found[path.stem] = number
    for task, path in databases.items():
        number = _forget_in_database(path, rater)
        if number:
            found[task] = max(found.get(task, 0), number)  # a finished task has the same answers in both
    if not found:
        raise DataError(
            f"nobody called {rater!r} has answered: 'srpo rate status' lists the raters of open tasks, and names are case-sensitive"
        )
    before = read_removed(directory)
    write_json(directory / REMOVED, asdict(Removed(before.answers + sum(found.values()), before.raters + 1)))
    return found


def _forget_in_database(path: Path, rater: str) -> int:
    """Delete a rater's rows, overwrite their bytes, and return how many there were."""
    if not path.is_file():
        return 0
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        connection.execute("PRAGMA secure_delete=ON")
        number = connection.execute("DELETE FROM answers WHERE rater = ?", (rater,)).rowcount
        if number:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path} cannot be changed ({error}): stop the page of the task, and try again"
        ) from error
    finally:
        connection.close()
    return int(number)


def merge_directories(older: Path, newer: Path, target: Path) -> None:
    """Copy the files of finished tasks of two directories; of a task in both, the answers that both have.

    The answers of a finished task never grow, so one that is in one file only was deleted from the other on request. What
    both directories have counted and neither file shows any more was deleted from both, and counts once.
    """
    target.mkdir(parents=True, exist_ok=True)
    gone: dict[Path, set[Key]] = {older: set(), newer: set()}
    for name in sorted({path.name for one in (older, newer) for path in list_files(one)}):
        files = {one: one / name for one in (older, newer) if (one / name).is_file()}
        answers = {one: answers_in(path) for one, path in files.items()}
        fewest = min(files, key=lambda one: len(answers[one]))
        shutil.copyfile(files[fewest], target / name)
        if len(files) > 1:
            keep_answers(target / name, set(answers[older]) & set(answers[newer]))
            gone[older] |= _valid(files[newer]) - set(answers[older])
            gone[newer] |= _valid(files[older]) - set(answers[newer])
    counted = {one: read_removed(one) for one in (older, newer)}
    raters = {one: {rater for _, rater, _, _ in gone[one]} for one in (older, newer)}
    removed = Removed(
        _together(*((counted[one].answers, len(gone[one])) for one in (older, newer))),
        _together(*((counted[one].raters, len(raters[one])) for one in (older, newer))),
    )
    if removed.answers:
        write_json(target / REMOVED, asdict(removed))


def _together(*copies: tuple[int, int]) -> int:
    """Return how many were removed from either copy: (number counted, number that the other copy still has) of each."""
    of_both = min(max(0, counted - visible) for counted, visible in copies)
    return max(of_both + sum(visible for _, visible in copies), *(counted for counted, _ in copies))


def _valid(path: Path) -> set[Key]:
    """Return the answers of a file that break no rule: one that does is set aside in versions, and was not deleted on request."""
    return {(one.task, one.rater, one.item, one.dimension) for one in read_ratings([path], refused=Refused())}
