"""Start a Ray cluster of one machine outside any run."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def ray_head(environment: Mapping[str, str], *, cpus: int) -> Iterator[str]:
    """Start a head node in another directory; yield its address, for RAY_ADDRESS with RAY_AUTH_MODE=disabled."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    start += [f"--port={address.split(':')[1]}", f"--num-cpus={cpus}", "--include-dashboard=false"]
    start += ["--object-store-memory=200000000"]
    quiet = {**environment, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(
        start, cwd="/", env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert head.stdout is not None
        said = []
        while "Ray runtime started" not in (line := head.stdout.readline()):
            said.append(line)
            assert head.poll() is None, said
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
