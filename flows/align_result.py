"""The outcome of a run of `align`, and the artifacts that show it in Prefect's UI."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from srpo_core import artifacts
from srpo_core.errors import StoreError
from srpo_core.release.links import in_markdown, keep_report
from srpo_core.report.text import markdown_text, visible
from srpo_core.runtime.costs import RunCost, cost_text, money_text
from srpo_core.storage import open_store
from srpo_core.workspace.reproduce import StageResult
from srpo_core.workspace.worktree import Workspace

LONGEST_SIDE: Final = 2000


@dataclass(frozen=True)
class AlignResult:
    """The outcome of a run.

    passed, reason: the verdict of the gate.
    report: the HTML report, with formats and cost.
    links: where others read report and grid: an address, or a path on this machine.
    release: URI of the published release, or None.
    stages: the result of each stage that ran.
    workspace: the worktree with all files of the run.
    home: whether the results were copied to the checkout.
    champion: the release in production that was evaluated beside the base, if it is the only difference between the
        run's settings and the checkout's.
    cost: what the stages cost when they ran, and what of it this run cost; None if no stage was timed.
    """

    passed: bool
    reason: str
    report: Path
    links: Mapping[str, str]
    release: str | None
    stages: tuple[StageResult, ...]
    workspace: Path
    home: bool
    champion: str | None = None
    cost: RunCost | None = None


def store_report(workspace: Workspace, report: Path, note: Callable[[str], None]) -> dict[str, str]:
    """Copy report and grid to the store, and return the links to them. note: is given the URI of the store before that.

    A store that cannot be written to is a warning, because a run has done hours of work by now. Then the links are the paths
    on this machine.
    """
    grid = workspace.path / artifacts.GRID
    try:
        store = open_store()
        note(store.uri)
        return keep_report(store, workspace.run_id, report, grid)
    except StoreError as error:
        get_run_logger().warning("the links to the report work only on this machine: %s", error)
        found = {"grid": grid, "report": report}
        return {name: str(path) for name, path in found.items() if path.is_file()}


def show_artifacts(result: AlignResult, decision: Mapping[str, Any]) -> None:
    """Show verdict, stages, the gate's rules and the before/after grid as artifacts in Prefect's UI."""
    create_markdown_artifact(markdown(result), key="align", description="verdict and stages of a run")
    if rules := decision.get("rules"):
        create_table_artifact(
            rule_rows(rules),
            key="gate",
            description=markdown_text(f"the gate's rules: {result.reason[:400]}"),
        )
    grid = result.workspace / artifacts.GRID
    if not grid.is_file():
        return
    try:
        image = small_image(grid)
    except OSError as error:  # the run has ended by now, and the report shows the images, too
        get_run_logger().warning("the UI does not show %s: %s", artifacts.GRID, error)
        return
    create_image_artifact(
        image, key="grid", description="before (above) and after (below), from the same noise"
    )


def small_image(path: Path) -> str:
    """Return an image as the data URI of a WebP of at most `LONGEST_SIDE` pixels.

    The server keeps it twice for each run, in the artifact and in an event: PNGs would be most of its database.

    Raises:
        OSError: it is no image, or a truncated one.
    """
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def rule_rows(rules: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the gate's rules as rows of a table, refusing rules first."""
    order = {"refuses": 0, "warns": 1, "holds": 2}
    columns = ("name", "verdict", "value", "low", "high", "side", "margin", "reason")
    ranked = sorted(rules, key=lambda rule: order.get(rule["verdict"], len(order)))
    return [
        {column: rule[column] for column in columns} | {"reason": visible(rule["reason"])} for rule in ranked
    ]


def markdown(result: AlignResult) -> str:
    """Return verdict, paths and stages as Markdown."""
    money = {} if result.cost is None else {one.stage: money_text(one.money) for one in result.cost.stages}
    rows = [
        f"| {stage.stage} | {'cached' if stage.cached else 'ran'} | {stage.seconds:.1f} | {money.get(stage.stage, '')} |"
        for stage in result.stages
    ]
    return "\n".join(
        [
            f"## {'Passed' if result.passed else 'Refused'}",
            markdown_text(result.reason),
            "",
            *(f"- {name}: {in_markdown(link)}" for name, link in result.links.items()),
            f"- release: `{result.release or 'none'}`",
            f"- workspace: `{result.workspace}`",
            f"- cost: {'not timed' if result.cost is None else cost_text(result.cost)}",
            "",
            "| stage | state | seconds | cost when it ran |",
            "|---|---|---:|---:|",
            *rows,
        ]
    )
