"""The full report: a copy of the stage's page with what is known only later, the formats and the cost of the run."""

from collections.abc import Collection
from contextlib import chdir
from pathlib import Path

from srpo_core import artifacts
from srpo_core.report.costs import with_costs
from srpo_core.report.formats import with_formats
from srpo_core.runtime.costs import RunCost, measured_cost
from srpo_core.runtime.dvc_yaml import read_stages


def write_whole(
    target: Path, *, root: Path, home: Path, cached: Collection[str] | None = None
) -> RunCost | None:
    """Write the report of the run in `root` to `target`, with the formats and times that exist.

    home: the directory in which the run's stages recorded their times; cached: the stages that DVC took from its cache,
    None if that is not known. Returns the cost of the run, None without times.

    Raises:
        ArtifactError: decision, report or proof are missing or damaged.
    """
    target, home = target.absolute(), home.absolute()
    with chdir(root):  # paths in the stage graph, which identify a stage's times, are relative to it
        decision = artifacts.read_json(artifacts.DECISION)
        page = artifacts.require(artifacts.REPORT).read_text(encoding="utf-8")
        if decision["passed"] and artifacts.PROOF.is_file():
            page = with_formats(page, artifacts.read_json(artifacts.PROOF))
        # of the stages that led to this decision: files of a release may be left of an earlier one
        stages = [name for name, one in read_stages().items() if decision["passed"] or not one.needs_passed]
        cost = measured_cost(stages, home, cached=cached)
    with artifacts.replacing(target) as partial:
        partial.write_text(with_costs(page, cost), encoding="utf-8")
    return cost
