"""Run git, DVC and other short commands and return what they print."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from srpo_core.errors import SrpoError

# what this project does in a checkout must not start the user's own hooks
_NO_HOOKS = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.hooksPath",
    "GIT_CONFIG_VALUE_0": os.devnull,
}


def run_command(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], umask: int = -1) -> str:
    """Run a command and return its output, stripped.

    umask: of the files that it creates; -1 keeps that of this process.

    Raises:
        SrpoError: it failed; the message has the reason that it printed, in one line.
    """
    done = _run(command, cwd, environment, umask)
    if done.returncode:
        printed = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        reason = _reason(printed.splitlines()) or f"exit code {done.returncode}"
        raise SrpoError(f"'{' '.join(command[:3])}' in {cwd} failed: {reason}")
    return done.stdout.decode(errors="replace").strip()


def git(cwd: Path, *arguments: str, environment: Mapping[str, str] | None = None, umask: int = -1) -> str:
    """Run git without the user's hooks and return its output, stripped.

    `GIT_*` variables of this process are ignored: a git hook that calls this project sets some of them.

    Raises:
        SrpoError: git failed; the message has the reason that it printed, in one line.
    """
    own = _git_environment() | dict(environment or {})
    return run_command(["git", *arguments], cwd=cwd, environment=own, umask=umask)


def try_git(cwd: Path, *arguments: str) -> str | None:
    """Run git as `git` does and return its output unstripped, or None if it failed or is not installed."""
    try:
        done = _run(["git", *arguments], cwd, _git_environment())
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout.decode(errors="replace")


def without_git_variables() -> dict[str, str]:
    """Return this process's environment without `GIT_*`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _reason(lines: Sequence[str]) -> str:
    """Return git's own error line, which may be followed by advice, else the last line."""
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "")


def _git_environment() -> dict[str, str]:
    return without_git_variables() | _NO_HOOKS


def _run(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], umask: int = -1
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command, cwd=cwd, env=dict(environment), umask=umask, capture_output=True, check=False
    )
