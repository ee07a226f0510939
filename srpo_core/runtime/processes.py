"""Child processes that never outlive the run that started them.

`run_streaming` starts a guardian (this file, run as a script) in a new session; the guardian starts the command. Four
mechanisms end the processes, each for the cases that the one before it misses:

1. The run ends by an error, a cancellation or Ctrl-C: `run_streaming` ends the guardian in its `finally`.
2. The run is killed: the kernel signals the guardian (PR_SET_PDEATHSIG). It ends every descendant, also those that
   left its session: as child subreaper it remains their ancestor.
3. A library started a server in the background: a watcher (`end_children_after_this_process`) waits for the end of a
   pipe that the run holds open, which the kernel closes when the process ends, and not when one of its threads does.
4. Guardian or watcher are killed too: the next run calls `end_leftovers`. Every process below a run has its owner's mark
   in its environment, so a reused process id is never taken for one of ours, and a live owner's are left alone.

Linux only. The script part uses only the standard library.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

OWNER: Final = "SRPO_OWNER"
GRACE_SECONDS: Final = 5.0

_WATCH: Final = "--watch"
_KEEP: Final = "--keep"
_watched: Final[dict[int, int]] = {}  # the end of the watcher's pipe that this process holds, by its id
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PROC: Final = Path("/proc")
_AWAITED: Final = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def run_streaming(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
) -> int:
    """Run a command, pass each line of its output to `on_line`, and return its exit code.

    Standard output and error are merged in the order written. When this call returns or raises, nothing that the
    command started is still running. A command that was ended by signal N gives 128 + N. The kernel ties the guardian
    to the calling thread, so this thread waits for the command.
    """
    guardian = [sys.executable, "-I", "-S", "-u", str(Path(__file__).resolve()), str(os.getpid()), *command]
    with subprocess.Popen(
        guardian,
        cwd=cwd,
        env={**environment, OWNER: owner_mark()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.rstrip())
            return _exit_code(process.wait())
        finally:
            _end_guardian(process)


def start_kept(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], lock: int) -> None:
    """Start a command that goes on when this process ends, below a guardian of its own.

    lock: descriptor of a locked file. The guardian writes its `owner_mark` into the file, marks its descendants with it,
    and holds the lock until none of them is left: the command has ended, or the guardian got SIGTERM.
    """
    guardian = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), _KEEP, str(lock), *command]
    _start_aside(guardian, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, pass_fds=[lock])


def owner_mark() -> str:
    """Return the mark of this process for the variable `OWNER`: process id, start time and PID namespace."""
    return f"{os.getpid()}.{_started(os.getpid())}.{_namespace()}"


def is_alive(mark: str) -> bool:
    """Whether the process that `owner_mark` describes exists in this PID namespace."""
    pid, _, rest = mark.partition(".")
    started, _, namespace = rest.partition(".")
    return pid.isdecimal() and namespace == _namespace() and _started(int(pid)) == started != ""


def end_leftovers(grace: float = GRACE_SECONDS) -> int:
    """End processes whose owner is dead, and their descendants; return their number.

    They get SIGTERM first, and SIGKILL after `grace` seconds.
    """
    return _end_all(_orphans, grace)


def end_children_after_this_process() -> None:
    """Start a watcher that ends what this process has marked as its own (`OWNER`) once it has ended, even by `kill -9`.

    One watcher for each process: a second call does nothing.
    """
    if os.getpid() in _watched:
        return
    reading, writing = os.pipe()
    try:
        watcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), _WATCH, owner_mark()]
        unmarked = {name: value for name, value in os.environ.items() if name != OWNER}
        _start_aside(watcher, cwd=Path("/"), env=unmarked, stdin=reading)
    finally:
        os.close(reading)
    _watched[os.getpid()] = writing  # inherited by no command: Python opens pipes that close at exec


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel signal this process when the thread that started it ends, for instance by `kill -9` of dvc."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def _start_aside(command: Sequence[str], **options: Any) -> None:
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(command, start_new_session=True, **silent, **options)


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _end_guardian(process: "subprocess.Popen[str]") -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(2 * GRACE_SECONDS + 5)  # the guardian gives up after two periods of grace
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _orphans() -> set[int]:
    found = {int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _owner_died(entry)}
    # Ray's workers overwrite their environment in /proc: they are found as descendants
    return {*found, *_descendants(found)} - {os.getpid()}


def _owner_died(process: Path) -> bool:
    prefix = f"{OWNER}=".encode()
    for entry in _read(process / "environ").split(b"\0"):
        if entry.startswith(prefix):
            pid, _, rest = entry.removeprefix(prefix).decode(errors="replace").partition(".")
            started, _, namespace = rest.partition(".")
            return namespace == _namespace() and pid.isdigit() and _started(int(pid)) != started
    return False


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if it has ended."""
    fields = _read(_PROC / str(pid) / "stat").rpartition(b")")[2].split()
    return "" if not fields or fields[0] == b"Z" else fields[19].decode()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _descendants(roots: Iterable[int]) -> set[int]:
    """Return all descendants of `roots` except zombies."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        # /proc/<pid>/stat: pid (command) state parent ...; the command may hold blanks and brackets
        fields = _read(entry / "stat").rpartition(b")")[2].split() if entry.name.isdigit() else []
        if fields and fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    below: set[int] = set()
    waiting = list(roots)
    while waiting:
        new = [child for child in children.get(waiting.pop(), []) if child not in below]
        below.update(new)
        waiting.extend(new)
    return below


def _read(path: Path) -> bytes:
    """Read a file in /proc; empty if the process has ended or belongs to another user."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _end_all(find: Callable[[], set[int]], grace: float) -> int:
    """Signal the processes of `find` until it finds none: SIGTERM once each, SIGKILL after `grace` seconds."""
    asked: set[int] = set()
    kill_at = time.monotonic() + grace
    while victims := find():
        force = time.monotonic() > kill_at
        if time.monotonic() > kill_at + GRACE_SECONDS:
            break  # in uninterruptible sleep: the kernel delivers the signal later
        for victim in victims if force else victims - asked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(victim, signal.SIGKILL if force else signal.SIGTERM)
        asked |= victims
        time.sleep(0.05)
    return len(asked)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _keep(lock: int, command: Sequence[str]) -> int:
    """Run a command as its guardian, without a parent; see `start_kept`."""
    os.environ[OWNER] = owner_mark()
    os.ftruncate(lock, 0)
    os.write(lock, os.environ[OWNER].encode())
    os.set_inheritable(lock, False)
    return _guard(None, command)


def _guard(parent: int | None, command: Sequence[str]) -> int:
    """Run a command as its guardian, and end every descendant when the command or the parent, if it has one, ends.

    Signals are awaited, not handled: the kernel sends one for each thread of the parent that ends, and the next one
    would interrupt a handler that raises while it ends the descendants.
    """
    # if inherited as ignored, the kernel would reap the children
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if parent is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the call of prctl
            return 128 + signal.SIGTERM
    try:
        # the command starts with default signals: none blocked, none ignored
        return _wait_for(
            os.posix_spawnp(
                command[0],
                list(command),
                os.environ,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        )
    except FileNotFoundError:
        sys.stderr.write(f"srpo: error: {command[0]} is not installed: run 'make setup' first\n")
        return 127
    except PermissionError:
        sys.stderr.write(f"srpo: error: {command[0]} is not executable: run chmod +x on it\n")
        return 126
    finally:
        _end_all(_reaped_descendants, GRACE_SECONDS)


def _wait_for(command: int) -> int:
    """Reap orphaned descendants until the command ends or a signal arrives; return an exit code."""
    while (signum := signal.sigwait(_AWAITED)) == signal.SIGCHLD:
        while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
            if reaped[0] == command:
                return _exit_code(os.waitstatus_to_exitcode(reaped[1]))
    return 128 + signum


def _reaped_descendants() -> set[int]:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    # twice: a process whose parent ends while /proc is read is missing from the first result
    return _descendants([os.getpid()]) or _descendants([os.getpid()])


def _watch(owner: str) -> int:
    """Wait until every holder of the pipe at standard input has ended, then end the processes of dead owners."""
    while os.read(0, 1):
        pass
    pid, started, _ = owner.split(".")
    while _started(int(pid)) == started:  # a process closes its files a moment before it has ended
        time.sleep(0.05)
    end_leftovers()
    return 0


if __name__ == "__main__":
    if sys.argv[1] == _WATCH:
        sys.exit(_watch(sys.argv[2]))
    if sys.argv[1] == _KEEP:
        sys.exit(_keep(int(sys.argv[2]), sys.argv[3:]))
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
