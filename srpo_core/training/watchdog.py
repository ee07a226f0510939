"""Detect stalled training: a rank reports its position in the code and exits, so that the workers restart.

Each rank watches itself from a thread. In a group, all ranks stall together: those that wait for the others report
that they wait, and the rank that does not wait, or reports nothing, is at fault.
"""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from srpo_core.config import StallSettings
from srpo_core.runtime.shared_files import Location

EXIT_CODE: Final = 75
WAITING_FUNCTION: Final = "read_scalars"  # of the learner: where the host waits for its device
GRACE_SECONDS: Final = 3.0  # for the reports of the other ranks, which end with this one
REPORT_SECONDS: Final = 120.0  # after the limit: to notice it, to write the reports and to end the processes
_RESTART_AFTER_STALL: Final = re.compile(
    r"step \d+ stalled for \d+ s at ranks? \d.*; restarting the workers, \d+ of \d+ times"
)
LEAST_TIMEOUT: Final = 1800.0  # torch's own; ranks that load from slow storage start far apart


@dataclass
class Watchdog:
    """End this process when a step takes `factor` times the median step, and at least `least_seconds`.

    state: location of the reports; exit_process: how to end it. The first step, which loads and compiles, and the
    work between steps may take `factor` times `least_seconds`; no step may take longer than that.
    """

    state: Location
    attempt: str
    rank: int
    world: int
    stall: StallSettings
    exit_process: Callable[[int], Any] = os._exit
    grace: float = GRACE_SECONDS
    _steps: list[float] = field(default_factory=list, init=False)
    _step: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)
    _between: bool = field(default=False, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)

    def __enter__(self) -> Self:
        """Start to watch the calling thread."""
        self._since = time.monotonic()
        watched = threading.get_ident()
        threading.Thread(target=self._watch, args=(watched,), daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()

    def step_done(self, step: int) -> None:
        """Record that a step has ended."""
        now = time.monotonic()
        self._steps.append(now - self._since)
        self._step, self._since = step, now

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Allow more time for work that is no step: a checkpoint takes as long as the storage needs."""
        self._since, self._between = time.monotonic(), True
        yield
        self._since, self._between = time.monotonic(), False

    @property
    def limit(self) -> float:
        """Seconds after which a step counts as stalled."""
        longest = longest_limit(self.stall)
        if self._between or not self._steps:
            return longest
        return min(longest, max(self.stall.least_seconds, self.stall.factor * median(self._steps)))

    def _watch(self, watched: int) -> None:
        while not self._ended.wait(min(1.0, self.stall.least_seconds / 5)):
            seconds = time.monotonic() - self._since
            if seconds > self.limit:
                try:
                    self._report(watched, seconds)
                    time.sleep(self.grace)
                finally:  # the report may fail on the same storage that stalls the step
                    self.exit_process(EXIT_CODE)
                return

    def _report(self, watched: int, seconds: float) -> None:
        waiting, where = _position(watched)
        report = {
            "rank": self.rank,
            "world": self.world,
            "step": self._step + 1,
            "seconds": round(seconds, 1),
            "waiting": waiting,
            "where": where,
        }
        place = stall_reports(self.state, self.attempt) / f"rank-{self.rank}.json"
        place.write(json.dumps(report).encode())


def longest_limit(stall: StallSettings) -> float:
    """Return the seconds after which the watchdog ends a process whatever it does."""
    return stall.factor * stall.least_seconds


def collective_timeout(stall: StallSettings) -> timedelta:
    """Return the timeout of collectives, after every limit of the watchdog.

    A rank waits in a collective only within a step or between two, so its watchdog has ended it and named the rank at
    fault before. NCCL's own timeout names nobody.
    """
    return timedelta(seconds=max(LEAST_TIMEOUT, longest_limit(stall) + REPORT_SECONDS))


def stall_reports(state: Location, attempt: str) -> Location:
    """Return the directory in which the ranks of an attempt report a stall."""
    return state / f"stalled-{attempt}"


def pop_stall(state: Location, attempt: str) -> str | None:
    """Read and delete the reports of an attempt.

    Returns one line that names the stalled step and the ranks at fault, or None if no rank reported a stall.
    """
    place = stall_reports(state, attempt)
    reports = {row["rank"]: row for row in (json.loads((place / name).read_text()) for name in place.names())}
    place.delete()
    if not reports:
        return None
    # the group's own size: an elastic group may be smaller than what was asked for
    silent = [rank for rank in range(next(iter(reports.values()))["world"]) if rank not in reports]
    at_fault = [row for row in reports.values() if not row["waiting"]]
    first = (at_fault or list(reports.values()))[0]
    ranks = silent or [row["rank"] for row in at_fault] or sorted(reports)
    where = "" if silent else f" in {first['where']}"
    names = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    return f"step {first['step']} stalled for {first['seconds']:.0f} s at {names}{where}"


def restart_line(failure: str, time: int, restarts: int) -> str:
    """Return the line that training logs when its workers start again, for the `time`-th of `restarts` times."""
    return f"{failure}; restarting the workers, {time} of {restarts} times"


def is_restart_after_stall(line: str) -> bool:
    """Whether a line of a stage is that of `restart_line` after a stall, which `pop_stall` has described."""
    return _RESTART_AFTER_STALL.fullmatch(line) is not None


def _position(thread: int) -> tuple[bool, str]:
    """Return whether a thread waits for other ranks, and the innermost line of this package on its stack."""
    frame = sys._current_frames().get(thread)
    waiting = frame is not None and (
        # on GPUs a collective returns at once; the host waits where it reads the result
        "torch/distributed" in frame.f_code.co_filename or frame.f_code.co_name == WAITING_FUNCTION
    )
    while frame is not None and "srpo_core" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return waiting, "unknown code"
    return waiting, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
