"""Report in one line that the Prefect server of a run has died; Prefect itself prints pages of traceback."""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Final, NoReturn, TypeGuard

from srpo_core.credentials import mask_credentials
from srpo_core.errors import SrpoError
from srpo_core.runtime.prefect_api import API_URL

# what Prefect's workers in the background log for each event that they cannot send
_NOT_SENT: Final = re.compile(r"Unable to connect to '|Service '\w+' failed to process item")
# a RuntimeError of Prefect if the server does not answer at the start of a flow
_NOT_REACHED: Final = re.compile(r"Failed to reach API at|ephemeral Prefect API server")


@contextmanager
def reporting_a_lost_server(before_end: Callable[[], object] = lambda: None) -> Iterator[None]:
    """End this process with one line and exit code 1 if a flow in this context ends because its server does not answer.

    It ends at once: Prefect's own shutdown would try for minutes to send what is left. If this process started the server
    itself and its port refuses connections, the server is gone for good, so Prefect's repetitions, which take a minute,
    are not waited for. A server of PREFECT_API_URL may be restarted meanwhile, and a busy one does not refuse.

    before_end: called before the line is printed.
    """
    import httpx

    def end(error: Exception) -> NoReturn:
        before_end()
        _end(error)

    try:
        with nullcontext() if "--debug" in sys.argv else _watched_client(end):
            yield
    except (httpx.HTTPError, RuntimeError) as error:
        if "--debug" in sys.argv or not (
            isinstance(error, httpx.HTTPError) or _NOT_REACHED.search(str(error))
        ):
            raise
        end(error)


def drop_what_was_not_sent(report: Callable[[str], None]) -> Callable[[logging.LogRecord], bool]:
    """Return a filter of log records that drops those about a server that does not answer, and reports the first."""
    reported = threading.Event()

    def keep(record: logging.LogRecord) -> bool:
        if not _NOT_SENT.match(record.getMessage()):
            return True
        if not reported.is_set():
            reported.set()
            report(
                "the Prefect server of this run does not answer any more: its record of the run will have gaps"
            )
        return False

    return keep


@contextmanager
def _watched_client(end: Callable[[Exception], object]) -> Iterator[None]:
    """Call `end` with the error when a request of this thread is refused by the server that this process started.

    Prefect's client logs each request that it is going to repeat, with its error. Requests of other threads carry logs and
    events: a stage need not end because of them.
    """
    client, own = logging.getLogger("prefect.client"), threading.get_ident()

    def look(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.thread == own and API_URL not in os.environ and is_refused(error):
            end(error)
        return record.levelno > logging.DEBUG

    level = client.level
    client.addFilter(look)
    client.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        client.setLevel(level)
        client.removeFilter(look)


def is_refused(error: BaseException | None) -> TypeGuard[Exception]:
    """Whether nothing listens at the port of a server: the error or one of its causes is a refused connection."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end(error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    line = (
        f"the Prefect server of this run does not answer any more ({reason}): stages that have ended are kept, run the "
        "same command again; 'srpo doctor' checks the server of PREFECT_API_URL"
    )
    with suppress(OSError):
        sys.stdout.flush()
        os.write(2, f"srpo: error: {mask_credentials(line)}\n".encode())
    os._exit(SrpoError.exit_code)
