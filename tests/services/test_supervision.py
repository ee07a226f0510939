"""The supervisor of the services, its lock and its files, without a Prefect server."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.preflight.machine import check_prefect
from srpo_core.runtime import file_lock
from srpo_core.runtime.processes import OWNER, owner_mark
from srpo_core.services.configuration import (
    CHECKOUT,
    service_names,
    services_environment,
    variables_that_differ,
)
from srpo_core.services.running import (
    NOTIFIER,
    SERVER,
    WORKER,
    acquire_or_find,
    directory_of,
    find_guardian,
    last_line,
    list_services,
    lock_of,
    running_address,
)
from srpo_core.services.starting import (
    start_service,
    start_supervisor,
    wait_for,
    wait_for_supervisor,
)
from srpo_core.services.status import examine
from srpo_core.services.stopping import stop

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0  # far more than any step needs


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(home, checkout=ROOT, **changed):
    given = {**os.environ, "PYTHONPATH": str(ROOT), **changed}
    address = f"http://127.0.0.1:{free_port()}/api"
    return services_environment(given, checkout=checkout, home=home, secrets={}, address=address)


def start(home, environment):
    assert start_supervisor(home, environment)
    wait_for_supervisor(home, time.monotonic() + SECONDS)


def soon(condition):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    yield path
    stop(path)


def own_processes(checkout):
    """Return the processes of this user whose services were started for a checkout."""
    wanted, found = f"{CHECKOUT}={checkout}".encode(), []
    for process in psutil.process_iter():
        try:
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
        except OSError:
            continue
    return [process for process in found if process.is_running() and process.status() != "zombie"]


@pytest.mark.parametrize("reused", [True, False], ids=["reused process id", "the lock is free"])
def test_a_lock_file_that_a_killed_guardian_has_left_does_not_count(home, reused):
    directory_of(home).mkdir()
    pid, started, namespace = owner_mark().split(".", 2)
    lock_of(home).write_text(f"{pid}.{int(started) - 7 if reused else started}.{namespace}")
    assert find_guardian(home) is None
    assert running_address(home) is None
    with acquire_or_find(home) as lock:
        assert isinstance(lock, file_lock.FileLock)
    assert [(one.name, one.good) for one in examine(home)] == [("services", False)]


def test_supervisord_runs_in_any_directory_and_ends_with_all_its_files_reusable(tmp_path):
    """The path has what its configuration would read as something else, and is too long for the path of a socket."""
    checkout = tmp_path / "a %(here)s %d ; b # ü" / ("long" * 30)
    home = checkout / ".srpo"
    home.mkdir(parents=True, mode=0o700)
    for _ in range(2):
        environment = environment_of(home, checkout, SRPO_NOTIFY="json://127.0.0.1:9")
        start(home, environment)
        try:
            assert [(one.name, one.state) for one in list_services(home)] == [
                (name, "STOPPED") for name in (SERVER, WORKER, NOTIFIER)
            ]
            assert running_address(home) == environment["PREFECT_API_URL"]
            assert not start_supervisor(home, environment), "a second start finds the first"
            start_service(home, NOTIFIER)
            soon(lambda: next(one for one in list_services(home) if one.name == NOTIFIER).pid)
            soon(lambda: any("notify" in one.cmdline() for one in own_processes(checkout)))
            (notifier,) = (one for one in own_processes(checkout) if "notify" in one.cmdline())
            assert Path(notifier.cwd()) == checkout
        finally:
            assert stop(home) == []
        assert own_processes(checkout) == []
        assert stop(home) is None


def test_a_service_that_is_killed_is_started_again(home):
    start(home, environment_of(home, SRPO_NOTIFY="json://127.0.0.1:9"))
    assert start_service(home, NOTIFIER)
    until = time.monotonic() + SECONDS
    first = wait_for(home, NOTIFIER, lambda _: True, until)
    os.kill(first.pid, signal.SIGKILL)
    second = wait_for(home, NOTIFIER, lambda one: one.pid != first.pid, until)
    assert psutil.pid_exists(second.pid)
    assert second.state == "RUNNING"
    assert not start_service(home, NOTIFIER)


@pytest.mark.parametrize("killed", ["guardian", "supervisord", "both"])
def test_when_the_supervision_is_killed_nothing_of_the_services_outlives_the_next_command(
    home, killed, tmp_path
):
    environment = environment_of(home, tmp_path, SRPO_NOTIFY="json://127.0.0.1:9")
    start(home, environment)
    start_service(home, NOTIFIER)
    soon(lambda: len(own_processes(tmp_path)) == 3)
    guardian = psutil.Process(find_guardian(home))
    victims = {"guardian": [guardian], "supervisord": guardian.children()}
    for victim in victims.get(killed, [guardian, *guardian.children()]):
        victim.kill()
    soon(lambda: find_guardian(home) is None)
    if killed != "both":
        soon(lambda: not own_processes(tmp_path))
    stop(home)
    assert own_processes(tmp_path) == []
    start(home, environment)


def test_another_program_at_the_port_is_reported_before_anything_is_started(home):
    environment = environment_of(home)
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(environment["PREFECT_API_URL"].split(":")[2].removesuffix("/api"))))
        other.listen()
        with pytest.raises(
            ConfigError, match=r"port \d+ cannot be used \(Address already in use\).*--port N"
        ):
            start_supervisor(home, environment)
    assert find_guardian(home) is None


def test_a_service_that_cannot_start_is_reported_with_the_last_line_of_its_log(home, tmp_path):
    (tmp_path / "srpo_core.py").write_text("raise SystemExit('this machine has no such package')")
    environment = environment_of(home, tmp_path, SRPO_NOTIFY="json://127.0.0.1:9")
    start(home, environment)
    # only now: supervisord itself needs the package, and the service finds this module first, in its directory
    start_service(home, NOTIFIER)
    with pytest.raises(SrpoError, match=r"notify ends again and again: .*no such package"):
        wait_for(home, NOTIFIER, lambda _: False, time.monotonic() + SECONDS)


def test_the_file_of_supervisord_has_no_secret_and_the_environment_leads_to_this_machine(home):
    environment = environment_of(
        home,
        SRPO_NOTIFY="json://user:very-secret@127.0.0.1:9",
        http_proxy="http://proxy.example:3128",
        **{OWNER: "1.2.3"},
    )
    start(home, environment)
    text = (directory_of(home) / "supervisord.conf").read_text()
    assert "very-secret" not in text
    assert str(home) not in text
    for name in ("no_proxy", "NO_PROXY"):
        assert "127.0.0.1" in environment[name].split(",")
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    mark = lock_of(home).read_text()
    (supervisord,) = psutil.Process(find_guardian(home)).children()
    assert supervisord.environ()[OWNER] == mark, "a mark of the caller's is replaced"


def test_the_notifier_runs_only_if_somebody_is_to_be_notified():
    assert service_names({}) == service_names({"SRPO_NOTIFY": " "}) == (SERVER, WORKER)
    assert service_names({"SRPO_NOTIFY": "json://a"}) == (SERVER, WORKER, NOTIFIER)


def test_variables_that_changed_since_the_start_are_named_without_their_values():
    then = {"SRPO_STORE": "store", "AWS_SECRET_ACCESS_KEY": "old", "PATH": "/bin"}
    now = {
        "SRPO_STORE": "store",
        "AWS_SECRET_ACCESS_KEY": "new",
        "PATH": "/usr/bin",
        "RAY_ADDRESS": "ray:6379",
    }
    assert variables_that_differ(then, now) == ["AWS_SECRET_ACCESS_KEY", "RAY_ADDRESS"]


def test_the_last_line_of_a_log_is_found_behind_blank_ones_and_in_a_large_file(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"x" * 100_000 + b"\n\xff reason \n\n  \n")
    assert last_line(log) == "� reason"


def test_the_doctor_asks_the_server_that_a_run_would_use(home, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("SRPO_HOME", str(home))
    assert check_prefect(None) == (True, "each run starts its own server on this machine")
    environment = environment_of(home)
    start(home, environment)  # without its server
    with pytest.raises(SrpoError, match=f"no Prefect server answers at .*{environment['PREFECT_API_URL']}"):
        check_prefect(None)


PREPARED = """
import os, sys
from flows.environment import prepare_environment
prepare_environment()
print(os.environ.get("PREFECT_API_URL"), os.environ.get("PREFECT_API_AUTH_STRING"))
"""


def test_a_run_from_the_terminal_uses_the_server_of_the_services_unless_another_is_named(home, monkeypatch):
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)

    def prepared(**named):
        given = {**os.environ, "PYTHONPATH": str(ROOT), "SRPO_HOME": str(home), **named}
        command = [sys.executable, "-c", PREPARED]
        done = subprocess.run(command, env=given, cwd=home, capture_output=True, text=True, check=True)
        return done.stdout.split()

    environment = environment_of(home, PREFECT_API_AUTH_STRING="srpo:of-the-services")
    start(home, environment)
    assert prepared() == [environment["PREFECT_API_URL"], "srpo:of-the-services"]
    other = "https://prefect.example/api"
    assert prepared(PREFECT_API_URL=other) == [other, "None"]
    stop(home)
    assert prepared()[0] == "None"


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        (["--port", "1"], {}, r"the services run at http://127.0.0.1:\d+/api: run 'srpo down' first"),
        (
            [],
            {"PREFECT_API_URL": "https://prefect.example/api"},
            "names the server of another machine: unset it",
        ),
        ([], {}, "the services of .* were started in /another: run 'srpo down' first, or set SRPO_HOME"),
    ],
    ids=["other port", "other machine", "other checkout"],
)
def test_services_that_do_not_fit_what_is_asked_are_left_alone(home, arguments, named, message):
    start(home, environment_of(home, Path("/another")))
    done = subprocess.run(
        [sys.executable, "-m", "srpo_core", "up", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SRPO_HOME": str(home), **named},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(f"srpo: error: .*{message}.*\n", done.stderr)
    assert [one.state for one in list_services(home)] == ["STOPPED", "STOPPED"]


STARTING = """
import os, sys, time
from pathlib import Path
from srpo_core.services.starting import start_supervisor, wait_for_supervisor
assert start_supervisor(Path(sys.argv[1]), dict(os.environ))
wait_for_supervisor(Path(sys.argv[1]), time.monotonic() + 120)
print("started", flush=True)
time.sleep(600)
"""


def test_services_end_beside_the_command_that_is_starting_them(home):
    """It is the parent of the guardian, and leaves it as a zombie."""
    environment = environment_of(home)
    command = [sys.executable, "-c", STARTING, str(home)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as starting:
        try:
            assert starting.stdout.readline() == "started\n"
            assert stop(home) == []
            assert find_guardian(home) is None
            assert stop(home) is None
        finally:
            starting.kill()
