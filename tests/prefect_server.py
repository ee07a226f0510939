"""Run a Prefect server and a worker, and deploy the flows of a checkout to them."""

import base64
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flows.server_secret import (
    CLIENT_SECRET,
    HEARTBEAT_SECONDS,
    HEARTBEATS,
    ORIGIN,
    ORIGINS,
    SERVER_SECRET,
    SLOTS,
    SLOTS_IN_FILES,
    read_or_make_secret,
)
from srpo_core.runtime.telemetry import quiet_environment

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """The REST interface of a Prefect server on loopback."""

    def __init__(self, home: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self.secret = read_or_make_secret(home)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **quiet_environment(),
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.url,
            SERVER_SECRET: self.secret,
            CLIENT_SECRET: self.secret,
            ORIGINS: ORIGIN,
            SLOTS: SLOTS_IN_FILES,
            HEARTBEATS: HEARTBEAT_SECONDS,
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def call(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """Send a GET request, or a POST request if there is a body, or another one; return the decoded response.

        The server responds with 503 while another writer locks its SQLite file, and has then written nothing. Like
        Prefect's own client, this function retries.
        """
        data = None if body is None else json.dumps(body).encode()
        basic = base64.b64encode(self.secret.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {basic}"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    text = answer.read()
                    return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > until:
                    raise
            time.sleep(1)

    def wait(
        self, path: str, body: dict[str, Any] | None, ready: Callable[[Any], bool], seconds: float
    ) -> Any:
        """Call until `ready(answer)`; fail after `seconds`."""
        until = time.monotonic() + seconds
        answer: Any = None
        while time.monotonic() < until:
            try:
                answer = self.call(path, body)
            except OSError as error:
                answer = error
            else:
                if ready(answer):
                    return answer
            time.sleep(0.5)
        raise AssertionError(f"{path} after {seconds} s: {answer}")


@contextmanager
def running_server(home: Path) -> Iterator[Server]:
    """Start a server that keeps its database in `home`; stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(home, port)
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=server.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            server.wait("/health", None, lambda answer: answer is True, seconds=180)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def deploy(server: Server, checkout: Path) -> dict[str, str]:
    """Run the commands in the first lines of pipelines.yaml; return the environment of a worker."""
    # a small checkout has no srpo_core: Prefect would silently register a form without its types
    code = os.pathsep.join([str(checkout), str(ROOT)])
    environment = {**server.environment, "SRPO_CHECKOUT": str(checkout), "PYTHONPATH": code}
    for command in (
        ["prefect", "work-pool", "create", "local-process", "--type", "process", "--overwrite"],
        ["prefect", "--no-prompt", "deploy", "--prefect-file", "pipelines.yaml", "--all"],
    ):
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return environment


@contextmanager
def running_worker(environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Start a worker of the pool `local-process`; stop it at the end."""
    with log.open("w") as output:
        worker = subprocess.Popen(
            ["prefect", "worker", "start", "--pool", "local-process"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(worker.pid, signal.SIGINT)
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:  # on a busy machine it may not respond to the signal in time
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(60)
