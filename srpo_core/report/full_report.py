"""The full report: a copy of the stage's page with what is known only later, the formats and the cost of the run."""

from contextlib import chdir
from pathlib import Path
from typing import Any

from srpo_core import artifacts
from srpo_core.report.costs import with_costs
from srpo_core.report.formats import with_formats
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.runtime.timings import costs


def write_whole(target: Path, *, root: Path, home: Path) -> list[dict[str, Any]]:
    """Write the report of the run in `root` to `target`, with the formats and times that exist.

    home: the directory in which the run's stages recorded their times. Returns the rows of the table of costs, none
    without times.

    Raises:
        ArtifactError: decision, report or proof are missing or damaged.
    """
    target, home = target.absolute(), home.absolute()
    with chdir(root):  # paths in the stage graph, which identify a stage's times, are relative to it
        decision = artifacts.read_json(artifacts.DECISION)
        page = artifacts.require(artifacts.REPORT).read_text(encoding="utf-8")
        if decision["passed"] and artifacts.PROOF.is_file():
            page = with_formats(page, artifacts.read_json(artifacts.PROOF))
        rows = costs(list(read_stages()), home)
    with artifacts.replacing(target) as partial:
        partial.write_text(with_costs(page, rows), encoding="utf-8")
    return rows
