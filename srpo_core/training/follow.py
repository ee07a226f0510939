"""Log the training progress that the workers write to a file."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from srpo_core.runtime.shared_files import Location

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3


REMOTE_POLL_SECONDS = 2.0


@contextmanager
def following(path: Location, steps: int) -> Iterator[None]:
    """Log each line that is added to a progress file, from a thread of its own."""
    seen = len(_whole_lines(path))
    ended = threading.Event()

    def report() -> None:
        nonlocal seen
        lines = _whole_lines(path)
        for line in lines[seen:]:
            row = json.loads(line)
            figures = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")
            log.info("step %d of %d  %s", row["step"], steps, figures)
        seen = len(lines)

    def watch() -> None:
        while not ended.wait(POLL_SECONDS if path.path else REMOTE_POLL_SECONDS):
            report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        report()


def _whole_lines(path: Location) -> list[str]:
    """The lines of a file that may just be written to."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def num_lines(path: Location) -> int:
    """Number of complete lines in a progress file, 0 when it is missing."""
    return len(_whole_lines(path))
