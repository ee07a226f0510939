"""The last lines of a terminal while a run lasts: its stages, a bar of the running one, the last figures, the times.

Everything else that is printed scrolls above them. They go when the run ends, so that the same lines remain as without
them. What a stage does at the moment is in its report, see `srpo_core/runtime/progress.py`.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO, cast

from rich.console import Console, Group
from rich.text import Text

from srpo_core.artifacts import home
from srpo_core.runtime.processes import is_alive, owner_mark
from srpo_core.runtime.progress import NEVER_FULL, REPORT_TO, Report, read_report, seconds_left, share_done

REFRESHES_PER_SECOND: Final = 4
WIDEST: Final = 78  # so that most windows that become narrower do not break the lines
NARROWEST_BAR: Final = 8
LONGEST_LABEL: Final = 30
LARGEST_COUNT: Final = 99_999  # of larger ones, such as weights, only the share is shown
_STEP: Final = re.compile(r"step \d+ of \d+  ")
_SYMBOLS: Final = {
    "waiting": ("·", "dim"),
    "started": ("▸", "cyan"),
    "finished": ("✓", "green"),
    "skipped": ("–", "yellow"),
    "failed": ("✗", "red"),
}


class LiveStages:
    """What is known of a run's stages, and how it is shown."""

    def __init__(self, report: Path, doing: str, clock: Callable[[], float] = time.monotonic) -> None:
        """report: the file that the running stage writes to; doing: what is done before the first stage, in words."""
        self._report, self._doing, self._clock = report, doing, clock
        self._began = self._stage_began = clock()
        self._states: dict[str, str] = {}
        self._usual: Mapping[str, float] = {}
        self._running: str | None = None
        self._figures = ""

    def plan(self, stages: Sequence[str], usual: Mapping[str, float]) -> None:
        """Take the stages to come, and the seconds that those took which are known from earlier runs."""
        self._states, self._usual = dict.fromkeys(stages, "waiting"), usual
        self._doing = ""

    def change(self, kind: str, stage: str) -> None:
        """Take that a stage has started, finished, was skipped, or failed."""
        self._states[stage] = kind
        self._running = stage if kind == "started" else None
        self._stage_began = self._clock()
        self._doing = ""

    def take(self, line: str) -> None:
        """Take a line that the running stage printed; figures of a step stay shown until the next ones."""
        if _STEP.match(line) or (re.search(r"\d", line) and not _STEP.match(self._figures)):
            self._figures = line

    def render(self, width: int) -> Group:
        """Return the lines, none of them wider than `width` columns."""
        report = read_report(self._report)
        rows = self._stage_rows(width)
        if self._running or self._doing or report:
            rows.append(self._running_row(report, width))
        if self._figures:
            rows.append(Text(self._figures, style="dim"))
        rows.append(Text(self._times(report)))
        for row in rows:
            row.truncate(width, overflow="ellipsis")
        return Group(*rows)

    def _stage_rows(self, width: int) -> list[Text]:
        rows = [Text()]
        for name, state in self._states.items():
            symbol, style = _SYMBOLS[state]
            item = Text.assemble((symbol, style), " ", (name, "bold" if state == "started" else style))
            if rows[-1] and len(rows[-1]) + 2 + len(item) > width:
                rows.append(Text())
            rows[-1] = Text("  ").join([rows[-1], item]) if rows[-1] else item
        return [row for row in rows if row]

    def _running_row(self, report: Report | None, width: int) -> Text:
        """Return what is done at the moment, with a bar and the time left, as far as they are known."""
        label = report.label if report else ("" if self._running else self._doing)
        if report and report.total and report.total <= LARGEST_COUNT:
            label = f"{label} {report.done} of {report.total}"
        row = Text(clock_time(self._clock() - self._stage_began).rjust(5) + "  ")
        row.append((self._running or "")[:LONGEST_LABEL], "bold").append("  " if self._running else "")
        if label:
            row.append(label[:LONGEST_LABEL]).append("  ")
        share, left = self._share(report), self._left(report)
        end = "" if share is None else f"  {share:4.0%}"
        end += "" if left is None else f"  {clock_time(left)} left"
        room = width - len(row) - len(end)
        if room >= NARROWEST_BAR:
            row.append_text(bar(share, min(room, 30), self._clock()))
        return row.append(end)

    def _share(self, report: Report | None) -> float | None:
        usual = self._usual.get(self._running or "")
        if report and (report.total or not usual):
            return share_done(report)
        return min(NEVER_FULL, (self._clock() - self._stage_began) / usual) if usual else None

    def _left(self, report: Report | None) -> float | None:
        """Return the seconds that the running stage needs: by its earlier time, or else by what it counts."""
        counted = seconds_left(report) if report else None
        usual = self._usual.get(self._running or "")
        known = usual - (self._clock() - self._stage_began) if usual else None
        if known is None or known < 0:
            return counted
        return known if counted is None else max(known, counted)

    def _times(self, report: Report | None) -> str:
        passed = f"{clock_time(self._clock() - self._began)} elapsed"
        waiting = [name for name, state in self._states.items() if state == "waiting"]
        left = self._left(report) if self._running else 0.0
        over = not waiting and not self._running
        if over or left is None or any(name not in self._usual for name in waiting):
            return passed
        return f"{passed}, about {clock_time(left + sum(map(self._usual.__getitem__, waiting)))} left"


class _Above:
    """A stream that prints whole lines above the live ones."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console, self._stream, self._rest = console, stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Print the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.print(Text.from_ansi(line), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is printed when it is complete."""

    def end(self) -> None:
        """Print what is left of a line."""
        if self._rest:
            self.write("\n")


def bar(share: float | None, width: int, now: float) -> Text:
    """Return a bar that is full up to a share, or for None one whose mark moves with the time `now`, in seconds."""
    if share is not None:
        full = round(share * width)
        return Text.assemble(("━" * full, "green"), ("─" * (width - full), "bright_black"))
    mark = width // 4
    start = int(now * REFRESHES_PER_SECOND) % (width - mark + 1)
    return Text.assemble(
        ("─" * start, "bright_black"), ("━" * mark, "cyan"), ("─" * (width - mark - start), "bright_black")
    )


def clock_time(seconds: float) -> str:
    """Format a time as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def can_move(console: Console) -> bool:
    """Whether lines can be replaced: on a terminal, unless TERM, NO_COLOR or CI ask for plain lines."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("CI", "").lower() not in ("", "0", "false")
    terminal = getattr(console.file, "isatty", lambda: False)()
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return terminal and console.is_interactive and not dumb and not plain


@contextmanager
def live_lines(console: Console, doing: str) -> Iterator[LiveStages]:
    """Show a run on the last lines of a terminal while the context is open; the stages in it report their progress.

    doing: see `LiveStages`. The cursor stays visible, so that a run that is killed leaves a usable terminal.
    """
    from rich.live import Live

    with _report_file() as report:
        stages = LiveStages(report, doing)
        live = Live(
            console=console,
            get_renderable=lambda: stages.render(min(console.width - 1, WIDEST)),
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with _printing_above(console), live:
            console.show_cursor(True)
            yield stages


@contextmanager
def _printing_above(console: Console) -> Iterator[None]:
    """Print what this process writes to standard error, and its log, above the live lines."""
    stream = sys.stderr
    above = cast("TextIO", _Above(console, stream))
    handlers = [
        one
        for one in logging.getLogger().handlers
        if isinstance(one, logging.StreamHandler) and one.stream is stream
    ]
    sys.stderr = above
    for handler in handlers:
        handler.setStream(above)
    try:
        yield
    finally:
        above.end()  # type: ignore[attr-defined]
        for handler in handlers:
            handler.setStream(stream)
        sys.stderr = stream


@contextmanager
def _report_file() -> Iterator[Path]:
    """Ask the processes of this run for reports, and yield the file in which they are; that of the user, if given."""
    if given := os.environ.get(REPORT_TO):
        yield Path(given)
        return
    directory = home() / "progress"
    directory.mkdir(exist_ok=True)
    for left in directory.iterdir():
        if not is_alive(left.name):  # of a run that was killed
            left.unlink(missing_ok=True)
    path = directory / owner_mark()
    os.environ[REPORT_TO] = str(path)
    try:
        yield path
    finally:
        del os.environ[REPORT_TO]
        with suppress(FileNotFoundError):
            path.unlink()
