"""How far a stage is: bars on a terminal, or reports in a file for the process that shows them.

A stage that DVC starts has no terminal. If the environment names a file in `SRPO_PROGRESS`, the file holds one line of
JSON, a `Report`, while something is counted or awaited, and is replaced in one step at most five times a second. What is
nested in something else is reported instead of it, until it ends. What is awaited, such as the start of Ray, has no count:
how long it took last on this machine, in `<home>/timings/awaited/`, is taken for how long it will take. Without the
variable nothing is written, and without a terminal nothing is printed. A report changes no output of a stage, and one that
cannot be written is left out.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from srpo_core.artifacts import home, replacing

T = TypeVar("T")

REPORT_TO: Final = "SRPO_PROGRESS"
LEAST_SECONDS: Final = 0.2  # between two reports
NEVER_FULL: Final = 0.99  # of what takes longer than before

Advance = Callable[[int], None]


class Report(BaseModel):
    """What a process does now.

    label: in words; done, total: how far it is, None if nothing can be counted; left: seconds that remain at the time
    `at`, None if that is not known yet; at: in seconds of the machine's monotonic clock; began: when it began, likewise.
    """

    model_config = ConfigDict(frozen=True)

    label: str
    done: int | None = None
    total: int | None = None
    left: float | None = None
    at: float
    began: float


def with_progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and count them; give `total` if they have no length. An item counts when the next one is asked for."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(label, total) as advance:
        for item in items:
            yield item
            advance(1)


def ignore(_done: int) -> None:
    """Take a number that nobody shows, as the function that `progress_bar` yields does."""


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Advance]:
    """Report, or show on standard error, how far something is; yield a function that advances it by a number.

    total: None if it is not known. The function can be called by several threads.
    """
    if os.environ.get(REPORT_TO) or not sys.stderr.isatty():
        with reporting(label, total) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(label, total=total)
        yield lambda done: progress.advance(bar, done)


@contextmanager
def reporting(label: str, total: int | None = None, *, done: int = 0) -> Iterator[Advance]:
    """Report how far something is, without a bar on a terminal; yield a function that advances it by a number.

    total: None if nothing can be counted, as while Ray starts; done: where it begins.
    """
    path = os.environ.get(REPORT_TO)
    with _Reporter(Path(path), label, total, done) if path else nullcontext() as reporter:
        yield ignore if reporter is None else reporter.advance


@contextmanager
def without_reports() -> Iterator[None]:
    """Let processes that start in this context report nothing: each of several workers would report its own share."""
    path = os.environ.pop(REPORT_TO, None)
    try:
        yield
    finally:
        if path is not None:
            os.environ[REPORT_TO] = path


def read_report(path: Path) -> Report | None:
    """Return the newest report in a file; None if there is none."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def share_done(report: Report) -> float | None:
    """Return how much is done, in [0, 1]: of what is counted, or else of the time that it took before; None if unknown."""
    if report.total is not None:
        return min(1.0, (report.done or 0) / report.total) if report.total else None
    if not report.left:
        return None
    # the beginning is also when the only report was written
    return min(NEVER_FULL, (time.monotonic() - report.began) / report.left)


def seconds_left(report: Report) -> float | None:
    """Return how many seconds remain now, at least 0; None if that is not known."""
    return None if report.left is None else max(0.0, report.left - (time.monotonic() - report.at))


class _Reporter:
    """Reports one thing that advances, and restores the report of what it is nested in when it ends."""

    def __init__(self, path: Path, label: str, total: int | None, done: int) -> None:
        self._path, self._label, self._total = path, label, total
        self._lock = threading.Lock()
        self._done = self._first = done
        self._began = time.monotonic()
        self._after_first: tuple[float, int] | None = (
            None  # when the first item was done, and how many were then
        )
        self._reported = -LEAST_SECONDS

    def __enter__(self) -> "_Reporter":
        self._around = _read(self._path)
        self._report()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._total is None and kind is None:
            _note_seconds(self._label, time.monotonic() - self._began)
        if self._around is None:
            with suppress(OSError):
                self._path.unlink()
        else:
            _write(self._path, self._around)

    def advance(self, done: int) -> None:
        """Advance by a number."""
        if self._total is None or done == 0:
            return
        with self._lock:
            self._done += done
            self._after_first = self._after_first or (time.monotonic(), self._done)
            if time.monotonic() - self._reported >= LEAST_SECONDS or self._done >= self._total:
                self._report()

    def _report(self) -> None:
        self._reported = now = time.monotonic()
        counted = None if self._total is None else self._done
        report = Report(
            label=self._label,
            done=counted,
            total=self._total,
            left=self._left(now),
            at=now,
            began=self._began,
        )
        _write(self._path, report.model_dump_json().encode() + b"\n")

    def _left(self, now: float) -> float | None:
        """Return the seconds that remain at the rate so far; that of the first item counts only until the second."""
        if self._total is None:
            return _seconds_before(self._label)
        if self._after_first is None:
            return None
        since, done = self._after_first
        if done == self._done:
            since, done = self._began, self._first
        if self._done <= done:  # it went back, as training does to its last checkpoint
            return None
        return (now - since) / (self._done - done) * (self._total - self._done)


def _seconds_before(label: str) -> float | None:
    """Return how long something took last on this machine that cannot be counted; None if that is not known."""
    with suppress(OSError):
        text = _awaited(label).read_text(encoding="utf-8", errors="replace")
        return float(text) if re.fullmatch(r"\d+\.\d+\n", text) else None
    return None


def _note_seconds(label: str, seconds: float) -> None:
    with suppress(OSError):
        _write(_awaited(label), f"{seconds:.3f}\n".encode())


def _awaited(label: str) -> Path:
    return home() / "timings/awaited" / re.sub(r"\W+", "-", label)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Replace a report. A full disk, for instance, must not end what is reported: then the report is left out."""
    with suppress(OSError), replacing(path) as partial:
        partial.write_bytes(content)
