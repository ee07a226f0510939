"""Processes whose end a test waits for."""

import time
from collections.abc import Iterable

import psutil


def runs(process: psutil.Process) -> bool:
    """Whether a process is still at work; one that nobody has reaped yet is not, nor is the next with its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def runs_by_number(pid: int) -> bool:
    """The same where only the number is known, as of a process that may be gone already."""
    try:
        return runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def ended(processes: Iterable[psutil.Process], seconds: float) -> bool:
    """Wait until none of them runs, `seconds` at most; whether they have all ended."""
    waiting, until = list(processes), time.monotonic() + seconds
    while (waiting := [process for process in waiting if runs(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return not waiting


def command_line(process: psutil.Process) -> list[str]:
    """The words of its command; none when it has ended or is another user's."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return []
