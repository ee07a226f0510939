"""Run DVC's command line under a guardian, so that it never outlives this process, and name why it failed."""

from collections.abc import Mapping
from pathlib import Path

from srpo_core.credentials import mask_credentials
from srpo_core.errors import SrpoError
from srpo_core.runtime.processes import run_streaming
from srpo_core.workspace.git import reason


def run_dvc(*arguments: str, cwd: Path, environment: Mapping[str, str]) -> None:
    """Run `dvc ARGUMENTS` in `cwd`.

    Without `--quiet`, with which DVC does not print why it failed.

    Raises:
        SrpoError: it failed; the message has DVC's `ERROR:` line, without credentials.
    """
    lines: list[str] = []
    code = run_streaming(["dvc", *arguments], cwd=cwd, environment=environment, on_line=lines.append)
    if code:
        why = mask_credentials(reason(lines)) or f"exit code {code}"
        raise SrpoError(f"'dvc {' '.join(arguments[:2])}' in {cwd} failed: {why}")
