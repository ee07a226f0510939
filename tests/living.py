"""Wait for the end of processes."""

import time
from collections.abc import Iterable

import psutil


def runs(process: psutil.Process) -> bool:
    """Return whether a process is still running; a zombie is not, nor is a later process with the same PID."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two calls
        return False


def runs_by_number(pid: int) -> bool:
    """Return the same from a PID, for a process that may have ended already."""
    try:
        return runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def ended(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Wait at most `seconds` for all processes to end; return whether they have."""
    waiting, until = list(processes), time.monotonic() + seconds
    while (waiting := [process for process in waiting if runs(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return not waiting


def command_line(process: psutil.Process) -> list[str]:
    """Return the words of a process's command; none if it has ended or belongs to another user."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return []
