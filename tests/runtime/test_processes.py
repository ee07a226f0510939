import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from living import ended, runs, runs_by_number

from srpo_core.runtime import processes

ROOT = Path(__file__).resolve().parents[2]


def stream(command: list[str], cwd: Path, lines: list[str] | None = None) -> int:
    return processes.run_streaming(
        command,
        cwd=cwd,
        environment=os.environ,
        on_line=(lines if lines is not None else []).append,
    )


def written_pid(file: Path) -> int:
    until = time.monotonic() + 15
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < until, f"{file} was never written"
        time.sleep(0.05)
    return int(file.read_text())


def test_output_is_passed_line_by_line_in_order_with_the_exit_code(tmp_path):
    lines: list[str] = []
    code = stream(["sh", "-c", "echo one; echo two >&2; echo three; exit 7"], tmp_path, lines)
    assert (code, lines) == (7, ["one", "two", "three"])


def test_a_command_killed_by_a_signal_returns_128_plus_the_signal_number(tmp_path):
    assert stream(["sh", "-c", "kill -9 $$"], tmp_path) == 137


def test_an_unknown_command_prints_one_line_and_returns_127(tmp_path):
    lines: list[str] = []
    assert stream(["no-such-command-here"], tmp_path, lines) == 127
    assert lines == ["srpo: error: no-such-command-here is not installed: run 'make setup' first"]


def test_child_processes_in_another_session_end_with_the_command(tmp_path):
    stream(["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & echo $! > left; sleep 0.3"], tmp_path)
    assert not runs_by_number(written_pid(tmp_path / "left"))


def test_an_error_while_reading_ends_the_command(tmp_path):
    def fail(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="go"):
        processes.run_streaming(
            ["sh", "-c", "echo $$ > pid; echo go; sleep 300"],
            cwd=tmp_path,
            environment=os.environ,
            on_line=fail,
        )
    assert not runs_by_number(written_pid(tmp_path / "pid"))


def start_run(tmp_path: Path, inner: str) -> "subprocess.Popen[bytes]":
    script = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from srpo_core.runtime.processes import run_streaming
        run_streaming(["sh", "-c", {inner!r}], cwd=Path({str(tmp_path)!r}), environment=os.environ,
                      on_line=print)
    """)
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)


def test_when_a_run_is_killed_its_command_and_all_descendants_end(tmp_path):
    run = start_run(
        tmp_path, "setsid sh -c 'echo $$ > deep; sleep 300; true' & echo $$ > top; sleep 300; true"
    )
    below = [psutil.Process(written_pid(tmp_path / name)) for name in ("deep", "top")]
    run.kill()
    run.wait()
    assert ended(below, seconds=15)


def test_a_command_that_ignores_sigterm_is_killed(tmp_path):
    run = start_run(tmp_path, "trap '' TERM; echo $$ > pid; while true; do sleep 0.1; done")
    command = psutil.Process(written_pid(tmp_path / "pid"))
    run.kill()
    run.wait()
    assert ended([command], seconds=processes.GRACE_SECONDS + 10)


@pytest.fixture
def guardian():
    """Return a function that starts a command and its guardian, as `run_streaming` does; kill both at the end."""
    started = []

    def start(*command):
        words = [sys.executable, "-I", "-S", "-u", processes.__file__, str(os.getpid()), *command]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        below = psutil.Process(int(started[-1].stdout.readline()))
        started.append(below)
        return started[-2], below

    yield start
    for process in started:
        try:
            process.kill()
            process.wait()
        except psutil.NoSuchProcess:
            continue


def test_a_guardian_that_receives_many_signals_still_ends_its_command(guardian):
    """The kernel sends one signal for each thread of a killed run."""
    for _ in range(10):
        watching, below = guardian("sh", "-c", "echo $$; exec sleep 300 >/dev/null")
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            watching.terminate()
        assert watching.wait(15) == 143
        assert not runs(below)


def test_signals_blocked_in_the_guardian_are_not_blocked_in_its_command(tmp_path):
    lines: list[str] = []
    stream(["sh", "-c", "trap 'echo heard' TERM; kill -TERM $$"], tmp_path, lines)
    assert lines == ["heard"]


def test_a_command_that_is_not_executable_prints_one_line_and_returns_126(tmp_path):
    file = tmp_path / "steps"
    file.write_text("")
    lines: list[str] = []
    assert stream([str(file)], tmp_path, lines) == 126
    assert lines == [f"srpo: error: {file} is not executable: run chmod +x on it"]


def test_a_workspace_module_named_like_a_standard_module_does_not_break_the_guardian(tmp_path):
    (tmp_path / "ctypes.py").write_text("raise RuntimeError('not the standard library')")
    lines: list[str] = []
    code = processes.run_streaming(
        ["echo", "ran"],
        cwd=tmp_path,
        environment={**os.environ, "PYTHONPATH": str(tmp_path)},
        on_line=lines.append,
    )
    assert (code, lines) == (0, ["ran"])


@pytest.mark.serial  # a parallel test may end the same processes or leave others behind
def test_only_processes_marked_with_a_dead_owner_are_ended(tmp_path):
    mine = processes.owner_mark()
    pid, started, namespace = mine.split(".")
    marks = {
        "dead owner": f"{pid}.{int(started) + 1}.{namespace}",
        "living owner": mine,
        "another namespace": f"{pid}.{int(started) + 1}.pid:[1]",
        "garbage": "x",
        "unmarked": None,
    }
    sleepers = {
        name: subprocess.Popen(
            ["sleep", "300"],
            env={**os.environ} if mark is None else {**os.environ, processes.OWNER: mark},
        )
        for name, mark in marks.items()
    }
    try:
        time.sleep(0.2)
        assert processes.end_leftovers() == 1
        assert sleepers["dead owner"].wait(5) == -signal.SIGTERM
        assert [name for name, sleeper in sleepers.items() if sleeper.poll() is not None] == ["dead owner"]
    finally:
        for sleeper in sleepers.values():
            sleeper.kill()
            sleeper.wait()


def test_a_stage_dies_when_the_process_that_started_it_is_killed(tmp_path):
    child = (
        "import pathlib, os, time; from srpo_core.runtime.processes import die_with_parent; die_with_parent();"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getpid()}}\\n'); time.sleep(300)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])",
        ],
        cwd=ROOT,
    )
    stage = psutil.Process(written_pid(tmp_path / "pid"))
    parent.kill()
    parent.wait()
    assert ended([stage], seconds=15)


SERVING = """
import os, subprocess, sys, threading, time
from pathlib import Path
from srpo_core.runtime import processes

def serve():
    os.environ[processes.OWNER] = processes.owner_mark()
    processes.end_children_after_this_process()
    processes.end_children_after_this_process()
    server = subprocess.Popen(["sleep", "300"], start_new_session=True)
    Path("server").write_text(f"{server.pid}\\n")

thread = threading.Thread(target=serve)
thread.start()
thread.join()
Path("joined").write_text("1\\n")
time.sleep(300)
"""


@pytest.mark.serial  # a parallel test may end the same processes
def test_a_background_server_outlives_a_thread_of_its_run_and_ends_with_the_killed_run(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", SERVING], cwd=tmp_path, env=environment)
    try:
        assert written_pid(tmp_path / "joined") == 1
        server = psutil.Process(written_pid(tmp_path / "server"))
        watchers = [child for child in psutil.Process(run.pid).children() if "--watch" in child.cmdline()]
        assert len(watchers) == 1
        time.sleep(0.5)  # what would follow the end of a thread has had time to happen
        assert runs(server)
    finally:
        run.kill()
        run.wait()
    assert ended([server, *watchers], seconds=15)
