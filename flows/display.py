"""The lines of a run on a terminal: one when a stage starts and when it ends, its own output dimmed in between.

The flows only log. Each record carries its kind in `extra={"srpo": ...}`, so Prefect's UI shows the same lines; the
handler in this module formats them for the terminal and drops the messages of Prefect's engine.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from flows.live_display import LiveStages, can_move, live_lines
from flows.lost_server import drop_what_was_not_sent
from srpo_core.runtime.streams import CLOSED_PIPE
from srpo_core.runtime.timings import usual_seconds
from srpo_core.workspace.stage_graph import read_graph
from srpo_core.workspace.worktree import Workspace

Log = logging.Logger | logging.LoggerAdapter[Any]

RUN_LOGGERS: Final = ("prefect.flow_runs", "prefect.task_runs")
# their errors also reach the caller as exceptions, which the command line prints
_ENGINE_MODULES: Final = frozenset({"flow_engine", "task_engine", "engine"})
# Prefect's warning when it shuts down before its last event is sent; it sends the event nevertheless
_SHUTDOWN_WARNING: Final = "Still processing items"


def started(name: str, description: str) -> dict[str, Any]:
    """Mark a record as the start of a stage."""
    return {"srpo": ("started", name, description)}


def finished(name: str, note: str) -> dict[str, Any]:
    """Mark a record as the successful end of a stage, with its result."""
    return {"srpo": ("finished", name, note)}


def skipped(name: str, note: str) -> dict[str, Any]:
    """Mark a record as a skipped stage, with the reason."""
    return {"srpo": ("skipped", name, note)}


def failed(name: str) -> dict[str, Any]:
    """Mark a record as the failure of a stage; the caller gets the error itself."""
    return {"srpo": ("failed", name, "")}


def output() -> dict[str, Any]:
    """Mark a record as a line printed by a stage."""
    return {"srpo": ("output", "", "")}


def planned(stages: Sequence[str], usual: Mapping[str, float]) -> dict[str, Any]:
    """Mark a record as the plan of a run: its stages in order, and the seconds that earlier runs took for them."""
    return {"srpo": ("planned", "", ""), "srpo_plan": (tuple(stages), dict(usual))}


def announce(log: Log, workspace: Workspace, *, publish: bool) -> None:
    """Log the stages to come, with publish and verify after those of the workspace's graph if the run is to publish."""
    names = [stage.name for stage in read_graph(workspace.path).stages]
    with chdir(workspace.path):  # the settings in it identify the times of earlier runs
        usual = usual_seconds(names, workspace.home)
    after = ["publish", "verify"] if publish else []
    stages = [*names, *after]
    # no times are kept of those after the graph, which are short beside it
    log.info("stages: %s", ", ".join(stages), extra=planned(stages, {**usual, **dict.fromkeys(after, 0.0)}))


class StageDisplay(logging.Handler):
    """Print the log records of a run to a terminal, and keep its last lines up to date in `showing`."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._live: LiveStages | None = None
        self._shown = ExitStack()

    @contextmanager
    def showing(self, doing: str) -> Iterator[None]:
        """Show the stages and their progress on the last lines while the context is open, if the terminal can do that.

        doing: what is done before the first stage, in words.
        """
        if not can_move(self.console):
            yield
            return
        with self._shown:
            self._live = self._shown.enter_context(live_lines(self.console, doing))
            try:
                yield
            finally:
                self._live = None

    def hide(self) -> None:
        """Remove what `showing` shows, as before this process ends at once."""
        self._shown.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        kind, name, note = getattr(record, "srpo", ("", "", ""))
        if self._live is not None:
            self._follow(self._live, kind, name, record)
        if kind == "started":
            self._print(Text.assemble(("▸ ", "cyan"), (f"{name:<14}", "bold"), note))
        elif kind == "finished":
            self._print(Text.assemble(("✓ ", "green"), (f"{name:<14}", "bold"), note))
        elif kind == "skipped":
            self._print(Text.assemble(("– ", "yellow"), (f"{name:<14}", "bold"), note))
        elif kind == "failed":
            self._print(Text.assemble(("✗ ", "red"), (f"{name:<14}", "bold"), "failed"))
        elif kind == "output":
            self._print(Text(f"    {record.getMessage()}", style="dim"))
        elif record.levelno >= logging.WARNING and record.module not in _ENGINE_MODULES:
            self.warn(record.getMessage())

    @staticmethod
    def _follow(live: LiveStages, kind: str, name: str, record: logging.LogRecord) -> None:
        if kind == "planned":
            live.plan(*record.__dict__["srpo_plan"])
        elif kind == "output":
            live.take(record.getMessage())
        elif kind:
            live.change(kind, name)

    def warn(self, line: str) -> None:
        """Print a warning."""
        self._print(Text(line, style="yellow"))

    def _print(self, text: Text) -> None:
        try:
            self.console.print(text, soft_wrap=True)
        except (
            SystemExit
        ):  # of rich, if nobody reads the output any more; the run can be repeated, as after a kill
            os._exit(CLOSED_PIPE)


def show_on_terminal(console: Console) -> StageDisplay:
    """Print the log records of runs on `console` from now on, instead of Prefect's own lines; return what prints them."""
    import prefect.main  # noqa: F401  # sets up Prefect's logging, which is changed below

    logging.raiseExceptions = (
        False  # Prefect would print each message that it cannot send to a server that has died
    )
    display = StageDisplay(console)
    lost = drop_what_was_not_sent(display.warn)
    for name in (None, "prefect._internal"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lost)
            handler.addFilter(_is_outside_a_run)
    for name in RUN_LOGGERS:
        logging.getLogger(name).addHandler(display)
    return display


def _is_outside_a_run(record: logging.LogRecord) -> bool:
    if record.name.startswith(RUN_LOGGERS) or record.getMessage().startswith(_SHUTDOWN_WARNING):
        return False
    return record.levelno >= logging.WARNING or not record.name.startswith(("prefect", "httpx"))
