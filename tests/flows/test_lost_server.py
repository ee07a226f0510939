"""A Prefect server that dies during a run is reported in one line, with what to do."""

import io
import logging
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from flows.display import StageDisplay
from flows.lost_server import _watched_client, drop_what_was_not_sent, reporting_a_lost_server

ROOT = Path(__file__).resolve().parents[2]
LOST = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "1000000"  # requests are repeated without end
os.environ.pop("PREFECT_API_URL", None)
import httpx
from prefect.client.base import PrefectHttpxSyncClient
from prefect.exceptions import PrefectHTTPStatusError
from flows.lost_server import reporting_a_lost_server

request = httpx.Request("POST", "http://127.0.0.1:1/api/flow_runs/")
errors = {
    "refused": httpx.ConnectError("[Errno 111] Connection refused"),
    "cut": httpx.RemoteProtocolError("Server disconnected without sending a response."),
    "slow": httpx.ReadTimeout(""),
    "locked": PrefectHTTPStatusError("Server error '503 Service Unavailable'", request=request, response=httpx.Response(503, request=request)),
    "start": RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server."),
    "unreachable": RuntimeError("Failed to create flow run. Failed to reach API at http://me:hunter22@h/api."),
}
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

def stop_a_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = PrefectHttpxSyncClient(base_url=f"http://127.0.0.1:{server.server_port}")
    assert client.get("/").status_code == 200
    server.shutdown()
    server.server_close()
    client.get("/")

for error in (*errors.values(), None):
    if (child := os.fork()) == 0:
        with reporting_a_lost_server():
            if error is None:
                stop_a_server()
            raise error
    print("exit code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""  # fmt: skip
REASONS = (
    "[Errno 111] Connection refused",
    "Server disconnected without sending a response.",
    "ReadTimeout",
    "Server error '503 Service Unavailable'",
    "Timed out while attempting to connect to ephemeral Prefect API server.",
    "Failed to create flow run. Failed to reach API at http://***@h/api.",
)


def test_what_prefect_raises_for_a_server_that_is_gone_ends_the_command_with_one_line_and_without_repetitions():
    """The last is a server of this process that refuses connections: its requests would be repeated without end."""
    done = subprocess.run(
        [sys.executable, "-c", LOST], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    advice = "stages that have ended are kept, run the same command again; 'srpo doctor' checks the server of PREFECT_API_URL"
    expected = [
        line
        for reason in (*REASONS, "[Errno 111] Connection refused")
        for line in (
            f"srpo: error: the Prefect server of this run does not answer any more ({reason}): {advice}",
            "exit code 1",
        )
    ]
    assert done.stderr.splitlines() == expected


def refused():
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    return error


@pytest.mark.parametrize(
    ("address", "error", "from_thread", "ends"),
    [
        (None, refused(), False, True),
        (None, refused(), True, False),  # logs and events
        (None, httpx.ReadTimeout("slow"), False, False),
        (None, httpx.ConnectTimeout("slow"), False, False),
        ("http://10.0.0.1:4200/api", refused(), False, False),  # it may be started again
    ],
)
def test_only_what_cannot_come_back_is_not_repeated(monkeypatch, address, error, from_thread, ends):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if address:
        monkeypatch.setenv("PREFECT_API_URL", address)
    client, ended = logging.getLogger("prefect.client"), []
    before = client.level, list(client.filters)

    def repeat():
        client.debug("Another attempt will be made", exc_info=error)

    with _watched_client(ended.append):
        if from_thread:
            thread = threading.Thread(target=repeat)
            thread.start()
            thread.join()
        else:
            repeat()
    assert ended == [error] * ends
    assert (client.level, client.filters) == before


@pytest.mark.parametrize("error", [RuntimeError("another"), ValueError("Failed to reach API at")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)), reporting_a_lost_server():
        raise error


def test_events_that_cannot_be_sent_are_reported_once_and_other_messages_are_printed():
    console = Console(file=io.StringIO(), width=200)
    logger = logging.Logger("test")
    logger.addHandler(StageDisplay(console))
    logger.handlers[0].addFilter(drop_what_was_not_sent(StageDisplay(console).warn))
    logger.warning(
        "Unable to connect to %r. Please check your network settings", "ws://127.0.0.1:8148/api/events/in"
    )
    for number in range(3):
        logger.error("Service %r failed to process item Event(%s)", "EventsWorker", number)
    logger.warning("the disk is nearly full")
    assert console.file.getvalue().splitlines() == [
        "the Prefect server of this run does not answer any more: its record of the run will have gaps",
        "the disk is nearly full",
    ]
