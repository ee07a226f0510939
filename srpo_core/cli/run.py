"""Commands that run the pipeline or a part of it."""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from srpo_core import artifacts, errors
from srpo_core.cli.app import app
from srpo_core.cli.options import parse_changes
from srpo_core.cli.output import REFUSED, shortest, show_verdict

PANEL: Final = "Run"


@app.command(rich_help_panel=PANEL)
def align(
    profile: Annotated[str | None, typer.Option(help="Preset in profiles/; default: params.yaml.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting, for instance train.steps=20; a mapping is merged into the present one.",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit, branch or tag to run; default: the checkout with uncommitted changes."),
    ] = None,
    publish: Annotated[bool, typer.Option(help="Publish the model if it passes the gate.")] = True,
) -> None:
    """Run the whole pipeline as a Prefect flow, from data to release.

    Exit code 3: the gate refused the model.
    """
    from flows.terminal import prepare_terminal

    changes = parse_changes(change or [])
    display = prepare_terminal()
    with display.showing("start the run"):
        from flows.form import parse_patch

        patch = parse_patch(changes)
        if revision is None:
            _require_valid_settings(profile, changes)
        from srpo_core.workspace.checkout import require_checkout

        require_checkout(Path.cwd(), revision=revision)
        from flows.align import align as align_flow
        from flows.align_result import AlignResult
        from flows.lost_server import reporting_a_lost_server
        from srpo_core.runtime.costs import cost_text

        # the flow returns a Prefect state, but calling it directly gives the data of that state
        with reporting_a_lost_server(display.hide):
            result = cast(
                "AlignResult", align_flow(profile=profile, patch=patch, revision=revision, publish=publish)
            )
    show_verdict(passed=result.passed, reason=result.reason)
    typer.echo(f"report   {shortest(result.report)}")
    where = "runs" if result.home else f"{shortest(result.workspace)}/runs"
    reason = "" if result.home or revision else f" ({_why_not_home(result.champion)})"
    typer.echo(f"results  {where}{reason}")
    if result.cost is not None:
        typer.echo(f"cost     {cost_text(result.cost)}")
    typer.echo(f"release  {shortest(result.release) if result.release else 'none'}")
    if not result.passed:
        raise typer.Exit(REFUSED)


def _require_valid_settings(profile: str | None, changes: dict[str, Any]) -> None:
    """Validate the settings of a run in this checkout, find its inputs, and open the header of every file of weights.

    The flow validates them again in its workspace, because a deployed run does not pass through this command. Here
    the error appears before a server is started.
    """
    from srpo_core.config import patched_settings
    from srpo_core.preflight.consistency import require_consistent
    from srpo_core.preflight.weight_files import require_readable_weights
    from srpo_core.workspace.inputs import require_inputs

    settings = patched_settings(Path.cwd(), profile=profile, patch=changes)
    require_consistent(settings)
    require_inputs(Path.cwd(), settings)
    require_readable_weights(settings)


def _why_not_home(champion: str | None) -> str:
    if champion:
        return (
            f"compared with {champion}, which is in production; set 'champion: {champion}' in params.yaml to get the "
            "results in runs/"
        )
    return "the checkout has other settings or files"


@app.command(rich_help_panel=PANEL)
def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml.")],
    alone: Annotated[
        bool, typer.Option("--alone", hidden=True, help="Do not compare the settings of other stages.")
    ] = False,
) -> None:
    """Run one stage with params.yaml of this directory; called by 'dvc repro'."""
    from srpo_core import config
    from srpo_core.runtime.dvc_yaml import argument_name, read_stages
    from srpo_core.runtime.processes import die_with_parent
    from srpo_core.runtime.progress import reporting
    from srpo_core.runtime.resume import discard_recorded
    from srpo_core.runtime.timings import timed

    die_with_parent()
    require_own_code(Path.cwd())
    settings = config.load_settings()
    # before torch is imported: floating-point sums depend on the number of threads
    os.environ["OMP_NUM_THREADS"] = str(settings.resources.threads_per_worker)
    from srpo_core.preflight.consistency import require_consistent

    with reporting("load the code"):
        run, definition = _stage_function(name), errors.pick(read_stages(), name, "stage")
    if not alone:  # 'srpo data' checks data for runs with other settings
        require_consistent(
            settings
        )  # of all stages: a fault of a late one must not cost the training before it
        if settings.resources.max_cost is not None:
            from srpo_core.plan.budget import require_budget

            require_budget(name, settings)
    discard_recorded(name)
    arguments = {argument_name(key): attrgetter(key)(settings) for key in definition.params}
    if "resources" in inspect.signature(run).parameters:
        arguments["resources"] = settings.resources
    with timed(name, settings.resources):
        run(**arguments)


@app.command(rich_help_panel=PANEL)
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Directory with a transformer's config.json and weights.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Directory to write to; default: .srpo/evaluations/<checkpoint>.")
    ] = None,
) -> None:
    """Compare a checkpoint with base and champion on the test prompts, by the rules of the gate.

    Exit code 3: the gate would refuse it.
    """
    from srpo_core import config

    require_own_code(Path.cwd())
    settings = config.load_settings()
    os.environ["OMP_NUM_THREADS"] = str(settings.resources.threads_per_worker)
    from srpo_core.cli.checkpoint_evaluation import evaluate_checkpoint, rule_table

    target = output or artifacts.evaluation_directory(checkpoint)
    decision = evaluate_checkpoint(settings, checkpoint, target)
    for line in rule_table(decision):
        typer.echo(line)
    show_verdict(passed=decision["passed"], reason=decision["reason"])
    typer.echo(f"figures  {shortest(target)}")
    if not decision["passed"]:
        raise typer.Exit(REFUSED)


@app.command(rich_help_panel=PANEL)
def report() -> None:
    """Write the report of this checkout's last run, with formats and cost, and print its verdict."""
    from srpo_core.report.full_report import write_whole
    from srpo_core.runtime.costs import cost_text

    decision = artifacts.read_json(artifacts.DECISION)
    whole = artifacts.home() / artifacts.REPORT.name
    cost = write_whole(whole, root=Path.cwd(), home=artifacts.home())
    show_verdict(passed=decision["passed"], reason=decision["reason"])
    typer.echo(f"report   {shortest(whole)}")
    for line in win_counts(decision["rules"]):
        typer.echo(line)
    if cost is not None:
        typer.echo(f"cost     {cost_text(cost)} timed here")


def win_counts(rules: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield, for each rule of the gate that compares by win rate, in how many test images its metric rose and fell."""
    from srpo_core.artifacts import CHAMPION
    from srpo_core.gates.pairs import count_wins, pair_up

    compared = [rule for rule in rules if rule["compare"] == "win_rate" and rule["value"] is not None]
    if not compared:
        return
    pairs = pair_up(artifacts.read_table(artifacts.FIGURES), artifacts.FIGURES)
    for rule in compared:
        theirs = pairs.champion if rule["against"] == CHAMPION else pairs.base
        assert theirs is not None, "a rule against the champion has a figure only if there is a champion"
        metric, tie = rule["metric"], rule["tie"]
        won, lost, even = count_wins(pairs.aligned[metric], theirs[metric], tie=tie)
        within = f"within {tie:g} of each other" if tie else "unchanged"
        yield f"wins     {metric} against the {rule['against']}: {won} of {len(pairs.seeds)} images gained, {lost} lost, {even} {within}"


def _stage_function(name: str) -> Any:
    """Return the function `run` of srpo_core/stages/<name>.py. Raises `ConfigError` if there is no such stage."""
    from srpo_core import stages

    known = {module.name: module.name for module in pkgutil.iter_modules(stages.__path__)}
    errors.pick(known, name, "stage")
    return importlib.import_module(f"srpo_core.stages.{name}").run


def require_own_code(directory: Path) -> None:
    """Raise `ConfigError` if `directory` contains srpo_core/ but another checkout's code is running."""
    here = directory / "srpo_core"
    if here.is_dir() and not Path(errors.__file__).parent.samefile(here):
        raise errors.ConfigError(
            f"{directory} contains srpo_core/, but {Path(errors.__file__).parent} was imported: start it there with "
            f"'python -m srpo_core', or set PYTHONPATH={directory}"
        )
