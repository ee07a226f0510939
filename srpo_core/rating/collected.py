"""The answers of a running task in SQLite: each is on disk before the rater sees the next item.

An answer is stored as the rater saw it ("left", not a model). WAL with `synchronous=FULL` keeps what was confirmed through
`kill -9` and a loss of power. Any number of processes may use the file.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from srpo_core.errors import AnswerError, DataError

FILE: Final = "answers.sqlite"
WAIT: Final = 60.0  # seconds for another process's write
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS answers (
  number INTEGER PRIMARY KEY, rater TEXT NOT NULL, item TEXT NOT NULL, dimension TEXT NOT NULL, answer TEXT NOT NULL,
  a_is_left INTEGER NOT NULL, seconds REAL NOT NULL, page TEXT NOT NULL, answered_at TEXT NOT NULL,
  UNIQUE (rater, item, dimension)
) STRICT;
CREATE TABLE IF NOT EXISTS closed (one INTEGER PRIMARY KEY CHECK (one = 1), reason TEXT NOT NULL, closed_at TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class Answer:
    """The answers of a rater to an item, one for each dimension, as the rater saw it. See `Rating` for the rest."""

    rater: str
    item: str
    answers: Mapping[str, str]
    a_is_left: bool
    seconds: float
    page: str
    answered_at: str


@dataclass(frozen=True)
class Answers:
    """The answers of a task. A new file is made when the first one is stored."""

    path: Path

    def add(self, answer: Answer) -> bool:
        """Store an answer; return False if the same one is stored already.

        Raises:
            AnswerError: another answer of this rater to this item is stored, which stays; or the task is finished.
        """
        with self._writing() as connection:
            self._require_open(connection)
            stored = dict(
                connection.execute(
                    "SELECT dimension, answer FROM answers WHERE rater = ? AND item = ?",
                    (answer.rater, answer.item),
                ).fetchall()
            )
            if stored:
                if stored == dict(answer.answers):
                    return False
                raise AnswerError(
                    f"item {answer.item}: {answer.rater} has answered it already, and otherwise; the first answer stays"
                )
            connection.executemany(
                "INSERT INTO answers (rater, item, dimension, answer, a_is_left, seconds, page, answered_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        answer.rater,
                        answer.item,
                        dimension,
                        given,
                        int(answer.a_is_left),
                        answer.seconds,
                        answer.page,
                        answer.answered_at,
                    )
                    for dimension, given in answer.answers.items()
                ],
            )
        return True

    def undo(self, rater: str, item: str) -> bool:
        """Remove a rater's answer to an item; return whether there was one. Raises `AnswerError`."""
        with self._writing() as connection:
            self._require_open(connection)
            found = connection.execute("DELETE FROM answers WHERE rater = ? AND item = ?", (rater, item))
            return found.rowcount > 0

    def items_of(self, rater: str) -> list[str]:
        """Return the items that a rater has answered, in the order of the answers."""
        if not self.path.exists():
            return []
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT item FROM answers WHERE rater = ? GROUP BY item ORDER BY min(number)", (rater,)
            ).fetchall()
            return [item for (item,) in rows]

    def all(self) -> list[Answer]:
        """Return all answers by rater and in the order in which they were given."""
        if not self.path.exists():
            return []
        found: dict[tuple[str, str], tuple[dict[str, str], tuple[int, float, str, str]]] = {}
        with self._connection() as connection:
            for rater, item, dimension, answer, *rest in connection.execute(
                "SELECT rater, item, dimension, answer, a_is_left, seconds, page, answered_at FROM answers"
                " ORDER BY rater, number"
            ):
                found.setdefault((rater, item), ({}, tuple(rest)))[0][dimension] = answer
        return [
            Answer(rater, item, answers, bool(a_is_left), seconds, page, answered_at)
            for (rater, item), (answers, (a_is_left, seconds, page, answered_at)) in found.items()
        ]

    def counts(self) -> dict[str, int]:
        """Return the number of items that each rater has answered."""
        if not self.path.exists():
            return {}
        with self._connection() as connection:
            return dict(
                connection.execute(
                    "SELECT rater, count(DISTINCT item) FROM answers GROUP BY rater ORDER BY rater"
                ).fetchall()
            )

    def close(self, reason: str) -> None:
        """Take no more answers, for good. reason: why the task ends before the planned end, or "". May be repeated."""
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO closed VALUES (1, ?, ?)", (reason, now()))

    def closed(self) -> str | None:
        """Return the reason with which the task was closed, or None if it is open."""
        if not self.path.exists():
            return None
        with self._connection() as connection:
            row = connection.execute("SELECT reason FROM closed").fetchone()
            return None if row is None else str(row[0])

    def _require_open(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM closed").fetchone():
            raise AnswerError("this task is finished and takes no more answers")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open the file, and translate damage of it into an error of one line."""
        try:
            connection = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(_SCHEMA)
                yield connection
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path} cannot be read or written ({error}): free the disk, or restore the file"
            ) from error


def now() -> str:
    """Return the time, ISO 8601 in UTC, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
