"""Training that stands still: a rank sees it, says where it stands, and ends, so that the workers start again.

Each rank watches itself from a thread. In a group all ranks stand still together: those that wait for the others
say so, and the one that does not, or says nothing, is at fault.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from srpo_core.config import StallSettings
from srpo_core.runtime.shared_files import Location

EXIT_CODE: Final = 75
WAITS: Final = "synchronised"  # the function of the learner that waits for the device
GRACE_SECONDS: Final = 3.0  # for the other ranks to say where they stand, before this one's end ends them


@dataclass
class Watchdog:
    """Ends this process when a step takes `factor` times the median step, and at least `least_seconds`.

    state: where the ranks of an attempt say where they stood; end: how to end the process. A first step, which
    loads and compiles, and what is done between steps may take `factor` times `least_seconds`.
    """

    state: Location
    attempt: str
    rank: int
    world: int
    stall: StallSettings
    end: Callable[[int], Any] = os._exit
    grace: float = GRACE_SECONDS
    _steps: list[float] = field(default_factory=list, init=False)
    _step: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)
    _between: bool = field(default=False, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)

    def __enter__(self) -> Self:
        """Begin to watch the calling thread."""
        self._since = time.monotonic()
        watched = threading.get_ident()
        threading.Thread(target=self._watch, args=(watched,), daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no longer."""
        self._ended.set()

    def step_done(self, step: int) -> None:
        """Note that a step has ended."""
        now = time.monotonic()
        self._steps.append(now - self._since)
        self._step, self._since = step, now

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """What happens in here is no step: a checkpoint takes as long as the storage does, but not for ever."""
        self._since, self._between = time.monotonic(), True
        yield
        self._since, self._between = time.monotonic(), False

    @property
    def limit(self) -> float:
        """Seconds after which a step is stalled."""
        if self._between or not self._steps:
            return self.stall.factor * self.stall.least_seconds
        return max(self.stall.least_seconds, self.stall.factor * median(self._steps))

    def _watch(self, watched: int) -> None:
        while not self._ended.wait(min(1.0, self.stall.least_seconds / 5)):
            seconds = time.monotonic() - self._since
            if seconds > self.limit:
                try:
                    self._report(watched, seconds)
                    time.sleep(self.grace)
                finally:  # the storage that the report goes to may be what stands still
                    self.end(EXIT_CODE)
                return

    def _report(self, watched: int, seconds: float) -> None:
        """Say where the watched thread stands."""
        waiting, where = _standing(watched)
        said = {
            "rank": self.rank,
            "world": self.world,
            "step": self._step + 1,
            "seconds": round(seconds, 1),
            "waiting": waiting,
            "where": where,
        }
        (reports(self.state, self.attempt) / f"rank-{self.rank}.json").write(json.dumps(said).encode())


def reports(state: Location, attempt: str) -> Location:
    """Where the ranks of an attempt say where they stood."""
    return state / f"stalled-{attempt}"


def stalled(state: Location, attempt: str) -> str | None:
    """What stood still in an attempt, in one line that names the ranks at fault; None if nothing did."""
    place = reports(state, attempt)
    said = {row["rank"]: row for row in (json.loads((place / name).read_text()) for name in place.names())}
    place.delete()
    if not said:
        return None
    # as many as there were: an elastic group may be smaller than what was asked for
    silent = [rank for rank in range(next(iter(said.values()))["world"]) if rank not in said]
    at_fault = [row for row in said.values() if not row["waiting"]]
    first = (at_fault or list(said.values()))[0]
    ranks = silent or [row["rank"] for row in at_fault] or sorted(said)
    where = "" if silent else f" in {first['where']}"
    names = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    return f"step {first['step']} stood still for {first['seconds']:.0f} s at {names}{where}"


def _standing(thread: int) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and the innermost line of ours that it stands in."""
    frame = sys._current_frames().get(thread)
    waiting = frame is not None and (
        # on GPUs a collective returns at once, and the wait is where its result is read
        "torch/distributed" in frame.f_code.co_filename or frame.f_code.co_name == WAITS
    )
    while frame is not None and "srpo_core" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return waiting, "unknown code"
    return waiting, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
