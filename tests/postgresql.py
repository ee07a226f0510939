"""Run PostgreSQL of Debian's package, as a user who is not root, with its data in a directory of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from debian import install_package

USER = "prefect"
DEBIANS = Path("/usr/lib/postgresql")


class PostgreSQL:
    """A database server on loopback. url: of its database, with the password, for Prefect."""

    def __init__(self, programs: Path, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.password = secrets.token_hex(16)
        self.url = f"postgresql+asyncpg://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"
        self._programs, self._root = programs, root
        # initdb and postgres refuse to run as root; the package makes this user
        self._as: dict[str, Any] = (
            {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        )
        if self._as:
            shutil.chown(root, "postgres", "postgres")
        password = root / "password"
        password.write_text(self.password)
        password.chmod(0o644)  # in a directory that only its user can enter
        self._run(
            "initdb",
            f"--pgdata={root / 'data'}",
            f"--username={USER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--no-sync",
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = subprocess.Popen(
            [
                self._programs / "postgres",
                f"-D{self._root / 'data'}",
                f"-k{self._root}",
                f"-p{self.port}",
                "-h127.0.0.1",
                "-cfsync=off",
            ],
            cwd=self._root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,
        )
        until = time.monotonic() + 120
        while self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False) != 0:
            assert self._process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server, with all its connections."""
        self._process.send_signal(2)  # SIGINT: fast shutdown
        self._process.wait(120)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._root,
            capture_output=True,
            check=False,
            **self._as,
        )
        assert done.returncode == 0 or not check, done.stderr.decode()
        return done.returncode


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """Start a server; end it and remove its data afterwards. The test is skipped where there is none."""
    programs = _programs()
    # a user other than root cannot enter pytest's directories
    with tempfile.TemporaryDirectory(prefix="srpo-postgresql-") as root:
        server = PostgreSQL(programs, Path(root))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _programs() -> Path:
    """Return the directory of PostgreSQL's programs, newest version; root installs the package if it is missing."""
    if not (found := sorted(DEBIANS.glob("*/bin/postgres"))):
        install_package("postgresql")
        found = sorted(DEBIANS.glob("*/bin/postgres"))
    if not found:
        pytest.skip("PostgreSQL is not installed, and could not be: apt-get install postgresql")
    return found[-1].parent
