"""Run a flow like `align` many times in this process: the same tasks, edges, log lines and artifacts, without the work.

The stages are those of dvc.yaml, with `publish` and `verify` after them. What a run of the preset tiny sends to the server
was counted in the database of its server: 111 lines of log, and the artifacts below. `operations.py` starts this script;
the server is that of PREFECT_API_URL.

    python benchmarks/operations_flow.py --runs 10 --concurrency 4

Each line of the output is a JSON object: the seconds of one run, and its error or null.
"""

import argparse
import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE

from srpo_core.runtime.dvc_yaml import Stage
from srpo_core.workspace.stage_graph import read_graph

ROOT = Path(__file__).parents[1]
AFTER = ("publish", "verify")
LOG_LINES = 111
LINE = "step 12 of 30  loss -0.31337  reward 0.27182  grad_norm 0.1618  0.9 s"
MARKDOWN = "## Passed\n" + "| train | ran | 61.3 | 0.0123 |\n" * 24  # 0.8 kB
RULES = [{"name": "a rule", "verdict": "holds", "value": 0.31, "reason": "it holds " * 30}] * 32  # 11 kB
CURVE = "data:image/svg+xml;base64," + "A" * 2_000
NUM_CURVES = 3
BYTES_OF_GRID = 64_000  # of the preset tiny, as `small_image` in flows/align_result.py encodes it


@task(cache_policy=NO_CACHE)
def stub(lines: int) -> None:
    """Send as many lines of log as a stage does."""
    log = get_run_logger()
    for _ in range(lines):
        log.info("%s", LINE)


def _show_artifacts(bytes_of_grid: int) -> None:
    create_progress_artifact(50.0, key="train-progress", description=LINE)
    for _ in range(NUM_CURVES):
        create_image_artifact(CURVE, key="alarm", description="evidence of reward hacking")
    create_markdown_artifact(MARKDOWN, key="align", description="verdict and stages of a run")
    create_table_artifact(RULES, key="gate", description="the gate's rules")
    grid = base64.b64encode(b"0" * bytes_of_grid).decode()
    create_image_artifact(f"data:image/webp;base64,{grid}", key="grid", description="before and after")


@flow(name="align")
def stub_align(profile: str, bytes_of_grid: int) -> None:
    """Run a task for each stage, in order, then show the artifacts. profile: what `srpo runs` lists as the preset."""
    stages = stages_of_graph()
    each, more = divmod(LOG_LINES, len(stages) + len(AFTER))
    states: dict[str, Any] = {}
    for place, stage in enumerate(stages):
        lines = each + (place < more)
        read = [states[other.name] for other in stages if other.name in states and stage.reads(other)]
        named = stub.with_options(name=stage.name, task_run_name=stage.name)
        states[stage.name] = named(lines, return_state=True, wait_for=read)
    for name in AFTER:
        stub.with_options(name=name, task_run_name=name)(each, wait_for=[states[stages[-1].name]])
    _show_artifacts(bytes_of_grid)


@cache
def stages_of_graph() -> tuple[Stage, ...]:
    """Read the stages of dvc.yaml, once in this process."""
    return tuple(read_graph(ROOT).stages)


def run_once(bytes_of_grid: int) -> dict[str, Any]:
    """Run the flow and return its seconds, with the error that ended it or None."""
    start = time.monotonic()
    try:
        stub_align("tiny", bytes_of_grid)
    except Exception as error:  # noqa: BLE001  # whatever ends a run under load is what is to be counted
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        fault = None
    return {"seconds": round(time.monotonic() - start, 3), "error": fault}


def main() -> None:
    """Run the flow as often as asked, several at a time, and print a line for each run that ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--grid", type=int, default=BYTES_OF_GRID, help="bytes of the image before/after")
    chosen = parser.parse_args()
    stages_of_graph()
    with ThreadPoolExecutor(chosen.concurrency) as pool:
        ended = [pool.submit(run_once, chosen.grid) for _ in range(chosen.runs)]
        for one in as_completed(ended):
            print(json.dumps(one.result()), flush=True)


if __name__ == "__main__":
    main()
