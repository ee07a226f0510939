"""A Prefect flow that evaluates any checkpoint, as `srpo evaluate` does.

No `from __future__ import annotations` here: Prefect reads the annotations to build the form of the flow.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import display
from flows.align_result import rule_rows
from flows.dead_runs import end_shown_tasks, find_dead_runs
from flows.notices import notify_failure, warn_of_channels
from srpo_core.artifacts import DECISION, evaluation_directory, read_json
from srpo_core.credentials import mask_credentials
from srpo_core.errors import GateError, StageError
from srpo_core.report.text import markdown_text
from srpo_core.runtime.processes import run_streaming
from srpo_core.workspace.worktree import FLOW_ONLY

_RESULTS: Final = (0, GateError.exit_code)


@flow(
    name="evaluate-checkpoint",
    on_running=[warn_of_channels, find_dead_runs],
    on_failure=[notify_failure],
    on_crashed=[notify_failure, end_shown_tasks],
)
def evaluate_checkpoint(checkpoint: str) -> "State[dict[str, Any]]":
    """Compare a checkpoint with base and champion on the test prompts, by the rules of the gate.

    Uses params.yaml and the prompts of the last run in the worker's checkout. An interrupted evaluation is resumed.

    Args:
        checkpoint: directory on the worker with a transformer's config.json and weights or adapters.
    """
    decision = evaluate(checkpoint)
    state = "Passed" if decision["passed"] else "Refused"
    create_markdown_artifact(
        f"## {state}\n{markdown_text(decision['reason'])}\n\n- checkpoint: `{checkpoint}`",
        key="evaluate-checkpoint",
        description="verdict of the gate's rules",
    )
    if rules := decision.get("rules"):
        create_table_artifact(
            rule_rows(rules), key="evaluate-checkpoint-rules", description="the gate's rules"
        )
    return Completed(name=state, message=decision["reason"], data=dict(decision))


@task(task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate(checkpoint: str) -> dict[str, Any]:
    """Run `srpo evaluate` in a process of its own, stream its output to the log, and return the decision."""
    log = get_run_logger()
    log.info("evaluate: %s", checkpoint, extra=display.started("evaluate", checkpoint))
    target = evaluation_directory(Path(checkpoint))
    decided = target / DECISION.name
    decided.unlink(
        missing_ok=True
    )  # exit code 3 may also be of a scorer that is refused: then there is no decision
    command = [sys.executable, "-m", "srpo_core", "evaluate", "--output", str(target), "--", checkpoint]
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(mask_credentials(line))
        log.info("%s", lines[-1], extra=display.output())

    environment = {name: value for name, value in os.environ.items() if name not in FLOW_ONLY}
    code = run_streaming(command, cwd=Path.cwd(), environment=environment, on_line=show)
    if code not in _RESULTS or not decided.is_file():
        raise StageError(lines[-1].removeprefix("srpo: error: ") if lines else f"exit code {code}", code)
    decision: dict[str, Any] = read_json(decided)
    log.info("evaluate %s", decision["reason"], extra=display.finished("evaluate", decision["reason"]))
    return decision
