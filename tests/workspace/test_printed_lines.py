"""What a command in a workspace prints, and what of it reaches the run's log and its error."""

import sys

import pytest

from srpo_core.errors import StageError
from srpo_core.workspace.reproduce import run_in_workspace
from srpo_core.workspace.worktree import Workspace

PRINTS = "print('to s3://AKEY:plantedSECRET@bucket'); print('srpo: error: https://me:plantedSECRET@host'); raise SystemExit({})"


def run(tmp_path, code, on_line):
    workspace = Workspace("run", tmp_path, tmp_path, tmp_path, "")
    return run_in_workspace(workspace, "stage a", [sys.executable, "-c", PRINTS.format(code)], on_line)


def test_credentials_that_a_command_prints_are_masked_in_the_log_and_in_the_error(tmp_path):
    shown: list[str] = []
    lines = run(tmp_path, 0, shown.append)
    assert lines == shown == ["to s3://***@bucket", "srpo: error: https://***@host"]
    with pytest.raises(StageError) as caught:
        run(tmp_path, 4, shown.append)
    assert str(caught.value) == "stage a: https://***@host"
    assert caught.value.exit_code == 4
