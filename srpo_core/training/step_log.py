"""Log the steps that the workers report in a progress file."""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from srpo_core.runtime.live_loggers import LiveLoggers
from srpo_core.runtime.progress import Advance, reporting
from srpo_core.runtime.shared_files import Location

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.3
REMOTE_POLL_SECONDS: Final = 2.0
SHOWN_BY_DECIMALS: Final = 1e-3


@contextmanager
def log_steps(path: Location, num_steps: int, loggers: LiveLoggers) -> Iterator[None]:
    """Log and report each line that is added to a progress file while the context is open, from a background thread.

    The figures of a step are logged as information, a note as a warning.

    The live loggers also receive the lines that an earlier process of this run has added.
    """
    before = _complete_lines(path)
    num_logged, num_shown = len(before), 0
    step = _last_step(before)
    ended = threading.Event()

    def log_new_lines(advance: Advance) -> None:
        nonlocal num_logged, num_shown, step
        rows = [json.loads(line) for line in _complete_lines(path)]
        for row in rows[num_shown:]:
            if "note" not in row:
                loggers.write(row)
        for row in rows[num_logged:]:
            if "note" in row:
                log.warning("%s", row["note"])
                continue
            figures = "  ".join(f"{name} {_rounded(value)}" for name, value in row.items() if name != "step")
            log.info("step %d of %d  %s", row["step"], num_steps, figures)
            advance(row["step"] - step)
            step = row["step"]
        num_logged = num_shown = len(rows)

    def poll(advance: Advance) -> None:
        while not ended.wait(POLL_SECONDS if path.path else REMOTE_POLL_SECONDS):
            log_new_lines(advance)

    with reporting("step", num_steps, done=step) as advance:
        thread = threading.Thread(target=poll, args=[advance], daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            log_new_lines(advance)


def _last_step(lines: Sequence[str]) -> int:
    """Return the last step of which a progress file has figures, 0 if there is none."""
    return next((row["step"] for row in map(json.loads, reversed(lines)) if "note" not in row), 0)


def _rounded(value: float) -> str:
    """Format a figure with four decimals, or in scientific notation if these would show nothing of it."""
    return f"{value:.4f}" if value == 0 or abs(value) >= SHOWN_BY_DECIMALS else f"{value:.2e}"


def _complete_lines(path: Location) -> list[str]:
    """Return the lines of a file that end in a newline: a worker may be writing the last one."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()
