"""A Prefect server of its own for `operations.py`: requests with their times, memory, CPU time, and size of the database."""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows.server_secret import CLIENT_SECRET, ORIGIN, ORIGINS, SERVER_SECRET, read_or_make_secret
from srpo_core.runtime.telemetry import quiet_environment

DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SECONDS_TO_START = 180
SECONDS_TO_ANSWER = 30.0
# what the server logs for each answer 503: SQLite was locked, or a connection of PostgreSQL was lost. The client waits 2 s,
# 4 s, 8 s … and asks again.
LOG_REFUSED = "PREFECT_API_LOG_RETRYABLE_ERRORS"
REFUSED = "Encountered retryable exception in request"
MB = 1e6


@dataclass
class Server:
    """A running server. database: the URL of a PostgreSQL database, or None for SQLite in `home`."""

    home: Path
    port: int
    database: str | None
    process: psutil.Process = field(init=False)

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.home / "server.log"

    def environment(self) -> dict[str, str]:
        """Return the variables of the server and of its clients."""
        secret = read_or_make_secret(self.home)
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **own,
            **quiet_environment(),
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            SERVER_SECRET: secret,
            CLIENT_SECRET: secret,
            ORIGINS: ORIGIN,
            LOG_REFUSED: "true",
            **({DATABASE_URL: self.database} if self.database else {}),
        }

    def call(self, path: str, body: Any = None, seconds: float = SECONDS_TO_ANSWER) -> Any:
        """Send a GET request, or a POST request if there is a body; return the decoded answer.

        Raises:
            OSError: it does not answer within `seconds`, or with an error.
        """
        basic = base64.b64encode(self.environment()[CLIENT_SECRET].encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {basic}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def state(self) -> dict[str, float]:
        """Return memory (MB) and CPU seconds of the server, size of its database (MB), and its answers 503 so far."""
        tree = [self.process, *self.process.children(recursive=True)]
        return {
            "memory_mb": round(sum(one.memory_info().rss for one in tree) / MB, 1),
            "cpu_seconds": round(sum(sum(one.cpu_times()[:2]) for one in tree), 2),
            "database_mb": round(self._bytes_of_database() / MB, 1),
            "refused": self.log.read_text(errors="replace").count(REFUSED),
        }

    def _bytes_of_database(self) -> int:
        if self.database is None:
            return sum(path.stat().st_size for path in self.home.glob("prefect.db*"))
        return asyncio.run(_postgresql_size(self.database))


@contextmanager
def running_server(home: Path, database: str | None, extra: Mapping[str, str]) -> Iterator[Server]:
    """Start a server whose files are in `home`, and stop it at the end. extra: further variables of the server."""
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(home, probe.getsockname()[1], database)
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(server.port)]
    with server.log.open("a") as log:
        process = subprocess.Popen(
            command,
            env={**server.environment(), **extra},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server.process = psutil.Process(process.pid)
    try:
        _wait(server, process)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server has ended with code {process.returncode}: see {server.log}")
        try:
            if server.call("/health"):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the server does not answer within {SECONDS_TO_START} s: see {server.log}")


async def _postgresql_size(url: str) -> int:
    import asyncpg

    connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://"))
    try:
        return int(await connection.fetchval("select pg_database_size(current_database())"))
    finally:
        await connection.close()
