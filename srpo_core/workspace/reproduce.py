"""Run a stage by DVC in a workspace; report whether it was cached, and a failure in one line."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from srpo_core.credentials import mask_credentials
from srpo_core.errors import StageError
from srpo_core.runtime.processes import run_streaming
from srpo_core.workspace.worktree import Workspace

# lines of DVC that only concern users of its command line
_DVC_HINT: Final = re.compile(
    r"Use `dvc push`|Running stage '|Stage '.*' (is cached|didn't change)|(Updating|Generating) lock file|To track the changes|To enable auto staging"
    r"|\s+(git add|dvc config) |> |$"
)
_OWN_ERROR: Final = re.compile(r"srpo: error: (.*)")
_DVC_ERROR: Final = re.compile(r"ERROR: (.*)")
_EXIT_CODE: Final = re.compile(r"ERROR: .*exited with (\d+)")


@dataclass(frozen=True)
class StageResult:
    """How a stage ended. cached: DVC found the outputs unchanged, or restored them."""

    stage: str
    cached: bool
    seconds: float


def reproduce(workspace: Workspace, stage: str, on_line: Callable[[str], None]) -> StageResult:
    """Run `dvc repro` on one stage, and pass each line that it prints to `on_line`.

    Raises:
        StageError: the stage failed; the message is the error line of the stage, or else of DVC.
    """
    started = time.monotonic()
    lines = run_in_workspace(workspace, f"stage {stage}", ["dvc", "repro", "--single-item", stage], on_line)
    ran = any(line.startswith(f"Running stage '{stage}'") for line in lines)
    return StageResult(stage, cached=not ran, seconds=time.monotonic() - started)


def run_again(workspace: Workspace, stage: str, on_line: Callable[[str], None]) -> None:
    """Run one stage by DVC even if its result is known, and pass each line that it prints to `on_line`.

    Raises:
        StageError: the stage failed; the message is the error line of the stage, or else of DVC.
    """
    command = ["dvc", "repro", "--single-item", "--force", "--no-run-cache", stage]
    run_in_workspace(workspace, f"stage {stage}", command, on_line)


def run_in_workspace(
    workspace: Workspace, what: str, command: Sequence[str], on_line: Callable[[str], None]
) -> list[str]:
    """Run a command in the workspace and return all its lines; `on_line` gets them without the hints of DVC.

    Credentials in them are masked: the lines are printed, and Prefect records them.

    Raises:
        StageError: the command failed; the message is `what` and its error line.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        line = mask_credentials(line)
        lines.append(line)
        if not _DVC_HINT.match(line):
            on_line(line)

    code = run_streaming(command, cwd=workspace.path, environment=workspace.environment(), on_line=take)
    if code:
        raise _failure(what, lines, code)
    return lines


def _failure(what: str, lines: list[str], code: int) -> StageError:
    own = [found[1] for line in lines if (found := _OWN_ERROR.match(line))]
    reasons = own or [found[1] for line in lines if (found := _DVC_ERROR.match(line))] or lines[-1:]
    exit_code = next((int(found[1]) for line in lines if (found := _EXIT_CODE.match(line))), code)
    return StageError(f"{what}: {reasons[-1] if reasons else f'exit code {code}'}", exit_code)
