"""What a run shows on a terminal: a line per stage as it starts and ends, what it says in between dimmed.

The flows only log. Records carry their meaning in `extra={"srpo": ...}`, so Prefect's UI has the same
lines; this handler draws them, and leaves out what Prefect's engine says about itself.
"""

import logging
from typing import Any, Final

from rich.console import Console
from rich.text import Text

RUN_LOGGERS: Final = ("prefect.flow_runs", "prefect.task_runs")
# their failures reach the caller as exceptions, which the command line prints
_ENGINE_MODULES: Final = frozenset({"flow_engine", "task_engine", "engine"})
# what Prefect warns of when it is asked to end before its last event is sent; it then sends it
_ON_ITS_WAY_OUT: Final = "Still processing items"


def began(name: str, description: str) -> dict[str, Any]:
    """Mark a record as the start of a stage."""
    return {"srpo": ("began", name, description)}


def ended(name: str, note: str) -> dict[str, Any]:
    """Mark a record as the end of a stage, with what became of it."""
    return {"srpo": ("ended", name, note)}


def left_out(name: str, note: str) -> dict[str, Any]:
    """Mark a record as a stage that is not run, with the reason."""
    return {"srpo": ("left out", name, note)}


def failed(name: str) -> dict[str, Any]:
    """Mark a record as the end of a stage that failed; the error itself reaches the caller."""
    return {"srpo": ("failed", name, "")}


def said() -> dict[str, Any]:
    """Mark a record as a line that a stage printed."""
    return {"srpo": ("said", "", "")}


class StageDisplay(logging.Handler):
    """Draw a run's records on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Draw one record."""
        kind, name, note = getattr(record, "srpo", ("", "", ""))
        if kind == "began":
            self._print(Text.assemble(("▸ ", "cyan"), (f"{name:<14}", "bold"), note))
        elif kind == "ended":
            self._print(Text.assemble(("✓ ", "green"), (f"{name:<14}", "bold"), note))
        elif kind == "left out":
            self._print(Text.assemble(("– ", "yellow"), (f"{name:<14}", "bold"), note))
        elif kind == "failed":
            self._print(Text.assemble(("✗ ", "red"), (f"{name:<14}", "bold"), "failed"))
        elif kind == "said":
            self._print(Text(f"    {record.getMessage()}", style="dim"))
        elif record.levelno >= logging.WARNING and record.module not in _ENGINE_MODULES:
            self._print(Text(record.getMessage(), style="yellow"))

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)


def show_on_terminal(console: Console) -> None:
    """From now on draw the records of runs on `console`, in place of Prefect's own lines."""
    import prefect.main  # noqa: F401  # sets up its logging, which is changed here

    for handler in logging.getLogger().handlers:
        handler.addFilter(_not_of_a_run)
    display = StageDisplay(console)
    for name in RUN_LOGGERS:
        logging.getLogger(name).addHandler(display)


def _not_of_a_run(record: logging.LogRecord) -> bool:
    if record.name.startswith(RUN_LOGGERS) or record.getMessage().startswith(_ON_ITS_WAY_OUT):
        return False
    return record.levelno >= logging.WARNING or not record.name.startswith(("prefect", "httpx"))
