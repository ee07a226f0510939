"""`srpo up` and `srpo down` with a real server and a real worker."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from postgresql import running_postgresql
from standin import git, make_standin

from srpo_core.runtime.prefect_api import ask_prefect_server
from srpo_core.services.running import (
    NOTIFIER,
    SERVER,
    WORKER,
    find_guardian,
    list_services,
    started_environment,
)

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.pipeline


DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


@pytest.fixture(
    params=[
        "SQLite",
        # initdb and another start of server and worker; `make test-nightly` installs the package if it runs as root
        pytest.param("PostgreSQL", marks=pytest.mark.nightly),
    ]
)
def database(request, monkeypatch):
    """The database server, or None for SQLite; `srpo up` is told of it by the environment."""
    monkeypatch.delenv("SRPO_NOTIFY", raising=False)
    if request.param == "SQLite":
        monkeypatch.delenv(DATABASE, raising=False)
        yield None
        return
    with running_postgresql() as server:
        monkeypatch.setenv(DATABASE, server.url)
        yield server


@pytest.fixture
def checkout(tmp_path):
    """A stand-in with the project's flows; its services are ended after the test, however it ends."""
    path = make_standin(tmp_path / "standin")
    shutil.copytree(ROOT / "flows", path / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipelines.yaml", path)
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "flows")
    yield path
    srpo(path, "down")


def srpo(checkout, *arguments):
    """Run the command line in a checkout, without what the caller's environment says about servers."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in {DATABASE, "SRPO_NOTIFY"}
        or (not name.startswith(("PREFECT_", "SRPO_")) and name != "PYTHONPATH")
    }
    return subprocess.run(
        [sys.executable, "-m", "srpo_core", *arguments],
        cwd=checkout,
        # the code of this checkout, and the stand-in's flows for the forms
        env={**environment, "PYTHONPATH": f"{checkout}{os.pathsep}{ROOT}", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def soon(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def up(checkout, *arguments):
    done = srpo(checkout, "up", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def processes_of(checkout):
    """Return the processes that have the checkout in their environment as the services have it."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("SRPO_CHECKOUT") == str(checkout) and process.status() != "zombie":
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def pids(home):
    return {service.name: service.pid for service in list_services(home) if service.pid}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_the_secret_is_needed(port):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/flows/filter", b"{}", {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=60)


def kill_each_service(home):
    """Kill server and worker, and wait until supervisord has started both again."""
    before = pids(home)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    soon(lambda: set(pids(home)) == {SERVER, WORKER} and not set(pids(home).values()) & set(before.values()))


def cut_the_power(checkout):
    """Kill everything at once, the guardian and supervisord too."""
    for pid in processes_of(checkout):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    soon(lambda: not processes_of(checkout))


def run_to_its_end(call, name):
    """Start a run of a deployment and return it when the worker has ended it."""
    (deployment,) = call("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    run = call(f"/deployments/{deployment['id']}/create_flow_run", {})
    query = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    soon(lambda: call("/flow_runs/filter", query)[0]["state_type"] in {"COMPLETED", "FAILED", "CRASHED"})
    return call("/flow_runs/filter", query)[0]


def test_services_come_up_come_back_survive_a_power_cut_and_leave_nothing(
    database, checkout, receiver, monkeypatch
):
    home = checkout / ".srpo"
    port = free_port()
    printed = up(checkout, "--port", str(port))
    assert f"ui         http://127.0.0.1:{port}\n" in printed
    count = int(re.search(r"(\d+) deployments\n", printed)[1])
    assert count == len(re.findall(r"^  - name:", (checkout / "pipelines.yaml").read_text(), re.M))
    assert srpo(checkout, "up", "--status").returncode == 0

    def call(path, query):
        return ask_prefect_server(path, query, started_environment(find_guardian(home)), 60.0)

    assert_the_secret_is_needed(port)
    address = f"export PREFECT_API_URL=http://127.0.0.1:{port}/api"
    assert address in srpo(checkout, "server-environment").stdout.splitlines()

    if database:
        database.stop()
        database.start()
    kill_each_service(home)
    again = up(checkout)  # it waits until both are ready
    assert "nothing was to do: all services run" in again
    assert f"{count} deployments, unchanged" in again
    assert srpo(checkout, "clean", "--delete", "--keep-days", "0").returncode == 0
    assert srpo(checkout, "up", "--status").returncode == 0

    assert run_to_its_end(call, "releases")["state_name"] == "Completed"
    (deployment,) = call("/deployments/filter", {"deployments": {"name": {"any_": ["gc"]}}})
    lost = call(
        f"/deployments/{deployment['id']}/create_flow_run", {"name": "lost", "state": {"type": "PAUSED"}}
    )
    running = {"state": {"type": "RUNNING", "name": "Running"}, "force": True}
    call(f"/flow_runs/{lost['id']}/set_state", running)
    cut_the_power(checkout)
    assert srpo(checkout, "up", "--status").returncode == 1
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    restarted = up(checkout, "--port", str(port))
    assert "run lost has no process any more and is set to Crashed" in restarted
    assert f"{count} deployments, unchanged" in restarted
    (run,) = call("/flow_runs/filter", {"flow_runs": {"id": {"any_": [lost["id"]]}}})
    assert run["state_type"] == "CRASHED"
    assert [message["title"] for message in receiver.messages] == ["SRPO failed: run lost"]
    assert set(pids(home)) == {SERVER, WORKER, NOTIFIER}

    assert srpo(checkout, "down").stdout == "the services are ended\n"
    assert processes_of(checkout) == set()
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
    assert srpo(checkout, "down").stdout == "no services ran\n"
    assert (home / "prefect/prefect.db").exists() is (database is None)
    if database:
        read = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
        assert not any(database.password.encode() in content for content in read)
