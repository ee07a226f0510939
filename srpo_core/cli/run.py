"""Commands that run the pipeline or a part of it."""

import importlib
import inspect
import os
import pkgutil
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from srpo_core import artifacts, errors
from srpo_core.cli.app import app
from srpo_core.cli.options import parse_changes
from srpo_core.cli.output import REFUSED, shortest, show_verdict

PANEL: Final = "Run"


@app.command(rich_help_panel=PANEL)
def align(
    profile: Annotated[
        str | None, typer.Option(help="preset in profiles/; default: params.yaml as it stands")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="a setting, for instance train.steps=20; a mapping is added to"
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="commit, branch or tag to run; default: the checkout as it is")
    ] = None,
    publish: Annotated[bool, typer.Option(help="publish a model that the gate lets through")] = True,
) -> None:
    """Run the whole road as a Prefect flow, from data to release.

    Exit code 3: the gate refused the model.
    """
    from flows.terminal import run_align

    result = run_align(profile=profile, patch=parse_changes(change or []), revision=revision, publish=publish)
    show_verdict(passed=result.passed, reason=result.reason)
    typer.echo(f"report   {shortest(result.report)}")
    where = "runs" if result.home else f"{shortest(result.workspace)}/runs"
    reason = "" if result.home or revision else f" ({_why_elsewhere(result.champion)})"
    typer.echo(f"results  {where}{reason}")
    typer.echo(f"release  {shortest(Path(result.release)) if result.release else 'none'}")
    if not result.passed:
        raise typer.Exit(REFUSED)


def _why_elsewhere(champion: str | None) -> str:
    if champion:
        return f"drawn beside {champion}, which is in production: with 'champion: {champion}' in params.yaml, 'srpo align' brings them to runs/"
    return "the checkout holds other settings or files"


@app.command(rich_help_panel=PANEL)
def stage(name: Annotated[str, typer.Argument(help="a stage of dvc.yaml")]) -> None:
    """Run one stage on params.yaml in this directory; 'dvc repro' calls this."""
    from srpo_core import config
    from srpo_core.runtime.dvc_yaml import argument_name, read_stages
    from srpo_core.runtime.processes import die_with_parent
    from srpo_core.runtime.resume import discard_recorded
    from srpo_core.runtime.timings import note_stage

    die_with_parent()
    require_own_code(Path.cwd())
    settings = config.load_settings()
    # before torch is imported: sums depend on the number of threads
    os.environ["OMP_NUM_THREADS"] = str(settings.resources.threads_per_worker)
    from srpo_core.preflight.consistency import require_consistent

    run, definition = _stage_function(name), errors.pick(read_stages(), name, "stage")
    require_consistent(settings)  # of all stages: a fault of a late one must not cost the training before it
    discard_recorded(name)
    arguments = {argument_name(key): attrgetter(key)(settings) for key in definition.params}
    if "resources" in inspect.signature(run).parameters:
        arguments["resources"] = settings.resources
    started = time.monotonic()
    run(**arguments)
    note_stage(name, time.monotonic() - started, settings.resources)


@app.command(rich_help_panel=PANEL)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="directory of a transformer's weights")],
    output: Annotated[
        Path | None, typer.Option(help="directory to write; default: below .srpo/evaluations")
    ] = None,
) -> None:
    """Draw any checkpoint beside base and champion on the test prompts, measure it, and say what the gate thinks of it.

    Exit code 3: the gate would refuse it.
    """
    from srpo_core import config

    require_own_code(Path.cwd())
    settings = config.load_settings()
    os.environ["OMP_NUM_THREADS"] = str(settings.resources.threads_per_worker)
    from srpo_core.cli.checkpoint_evaluation import evaluate_checkpoint, rule_table

    target = output or artifacts.home() / "evaluations" / checkpoint.name
    decision = evaluate_checkpoint(settings, checkpoint, target)
    for line in rule_table(decision):
        typer.echo(line)
    show_verdict(passed=decision["passed"], reason=decision["reason"])
    typer.echo(f"figures  {shortest(target)}")
    if not decision["passed"]:
        raise typer.Exit(REFUSED)


@app.command(rich_help_panel=PANEL)
def report() -> None:
    """Say what the last run here came to, and write its report with its formats and what it cost."""
    from srpo_core.report.full_report import write_whole

    decision = artifacts.read_json(artifacts.DECISION)
    whole = artifacts.home() / artifacts.REPORT.name
    rows = write_whole(whole, root=Path.cwd(), home=artifacts.home())
    show_verdict(passed=decision["passed"], reason=decision["reason"])
    typer.echo(f"report   {shortest(whole)}")
    for line in win_counts(decision["rules"]):
        typer.echo(line)
    if rows:
        hours = sum(row["device_hours"] for row in rows)
        typer.echo(f"cost     {hours:.3f} device hours in {len(rows)} stages timed here")


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
    """The `run` of srpo_core/stages/<name>.py; an unknown name is a `ConfigError`."""
    from srpo_core import stages

    known = {module.name: module.name for module in pkgutil.iter_modules(stages.__path__)}
    errors.pick(known, name, "stage")
    return importlib.import_module(f"srpo_core.stages.{name}").run


def require_own_code(directory: Path) -> None:
    """A run uses the code that lies beside its settings, never another checkout's."""
    here = directory / "srpo_core"
    if here.is_dir() and not Path(errors.__file__).parent.samefile(here):
        raise errors.ConfigError(
            f"{directory} has code of its own, but {Path(errors.__file__).parent} was imported: "
            f"start it as 'python -m srpo_core' in that directory, or with PYTHONPATH={directory}"
        )
