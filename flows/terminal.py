"""Prepare a terminal to run a flow in it, as `srpo align` and `srpo promote` do: progress, Ctrl-C, environment."""

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from flows.environment import prepare_environment
from srpo_core.runtime.prefect_api import require_prefect_server

if TYPE_CHECKING:
    from flows.display import StageDisplay

INTERRUPTED: Final = 128 + signal.SIGINT


def prepare_terminal() -> "StageDisplay":
    """Prepare this process to run flows: print their lines to stderr, and end at once on Ctrl-C.

    Call it before a module with flows is imported, because Prefect reads the environment at import.

    Raises:
        SrpoError: no server answers at `PREFECT_API_URL`, or it refuses the secret.
    """
    signal.signal(signal.SIGINT, _end_at_once)
    prepare_environment()
    require_prefect_server()
    from rich.console import Console

    from flows.display import show_on_terminal

    return show_on_terminal(Console(file=sys.stderr, highlight=False))


def _end_at_once(*_: object) -> NoReturn:
    """End on Ctrl-C as on kill -9, which is safe at any moment; the guardian process of a stage ends what still runs.

    Prefect's own shutdown would print tracebacks of a server that the same Ctrl-C has ended.
    """
    # Python's buffered stderr is bypassed: the signal may have interrupted a write to it. stderr may also be closed.
    with suppress(OSError):
        terminal = os.dup(2)
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 2
        )  # else the thread of the moving lines could erase the message
        os.write(terminal, b"\nsrpo: error: interrupted; repeat the same command to resume\n")
    os._exit(INTERRUPTED)
