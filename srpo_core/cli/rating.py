"""Commands for blind ratings by people: serve or export a task, import answers, count them, finish."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from srpo_core import artifacts, errors
from srpo_core.cli.app import app
from srpo_core.cli.groups import group_with_default
from srpo_core.cli.output import shortest
from srpo_core.cli.run import require_own_code

if TYPE_CHECKING:
    from srpo_core.config import Settings
    from srpo_core.rating.power import Plan
    from srpo_core.rating.task import Task

PANEL: Final = "Ratings by people"
DEFAULT: Final = "start"
EFFECTS: Final = {"paired": 0.2, "levels": 0.3}
LOOPBACK: Final = "127.0.0.1"

rate_app = typer.Typer(
    cls=group_with_default(DEFAULT),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rate_app, name="rate", rich_help_panel=PANEL)


@rate_app.callback()
def show_help(context: typer.Context) -> None:
    """Let people rate images of a release or checkpoint, without seeing which model is which ('srpo rate RELEASE')."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@rate_app.command(DEFAULT)
def start(  # noqa: PLR0913, PLR0917  # the options of the command
    model: Annotated[str, typer.Argument(help="Release (version or alias), or directory of a checkpoint.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="What to compare with: base, production, a release or a checkpoint; repeatable."),
    ] = None,
    protocol: Annotated[
        Literal["paired", "levels"],
        typer.Option(help="paired: which of two images is better; levels: excellent, good, pass or fail."),
    ] = "paired",
    effect: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Effect to show: how far the win rate is above 1/2, or the share of excellent images above "
            "the other model's; default: 0.2 or 0.3.",
        ),
    ] = None,
    power: Annotated[float, typer.Option(min=0, max=1, help="Chance to show it if it is there.")] = 0.8,
    raters: Annotated[int, typer.Option(min=2, help="Number of raters; each rates all items.")] = 5,
    host: Annotated[
        str,
        typer.Option(help="Address to listen at; beyond loopback, the page asks for the servers' secret."),
    ] = LOOPBACK,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port; default: that of the last time if it is free, or any."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the task to this HTML file instead of serving it.")
    ] = None,
) -> None:
    """Plan a rating task, generate its images and serve the page. 'srpo rate RELEASE' does this, too.

    Repeat the command to resume: the same models and the same plan are the same task.
    """
    from srpo_core import config
    from srpo_core.rating import server

    is_private = server.is_loopback(host)
    require_own_code(Path.cwd())
    settings = config.load_settings()
    given = EFFECTS[protocol] if effect is None else effect
    task = _prepare(settings, model, against or [artifacts.BASE], (protocol, given, power, raters))
    if export is not None:
        from srpo_core.rating.exporting import export_page

        with artifacts.replacing(export) as partial:
            partial.write_text(export_page(task), encoding="utf-8")
        typer.echo(f"page    {shortest(export)}; 'srpo rate import FILE' takes the answers that it saves")
        return
    _serve(task, host, port, is_private=is_private)


@rate_app.command()
def status(
    task: Annotated[str | None, typer.Argument(help="Name of a task or its beginning; default: all.")] = None,
) -> None:
    """Count the answers of each rater. Results are not shown before the end."""
    from srpo_core.rating.finishing import answers_of_task
    from srpo_core.rating.task import find_task, known_tasks

    names = known_tasks() if task is None else [find_task(task).id]
    if not names:
        typer.echo("no tasks: 'srpo rate RELEASE' makes one")
    for name in names:
        found = find_task(name)
        answers = answers_of_task(found)
        end = "open" if answers.closed() is None else "finished"
        typer.echo(f"task    {name}: {found.protocol}, {' and '.join(found.models)}, {end}")
        typer.echo(f"planned {found.num_raters} raters, {len(found.items)} items each")
        for rater, count in answers.counts().items():
            typer.echo(f"rater   {rater}: {count} of {len(found.items)} items")


@rate_app.command("import")
def import_file(
    files: Annotated[list[Path], typer.Argument(help="Files that an exported page has saved.")],
) -> None:
    """Take the answers that raters of an exported page have sent. Safe to repeat. Exit code 2 if an answer is refused."""
    from srpo_core.rating.exporting import MOST_FAULTS, import_answers

    refused = 0
    for file in files:
        found = import_answers(file)
        for line in found.faults[:MOST_FAULTS]:
            typer.echo(line, err=True)
        more = len(found.faults) - MOST_FAULTS
        if more > 0:
            typer.echo(f"{file}: and {more} more", err=True)
        refused += len(found.faults)
        typer.echo(
            f"task {found.task}: {found.rater}: {found.new} new answers, {found.stored_already} stored already, "
            f"{len(found.faults)} refused{f'; set aside in {shortest(found.set_aside)}' if found.set_aside else ''}"
        )
    if refused:
        raise typer.Exit(errors.DataError.exit_code)


@rate_app.command()
def finish(
    task: Annotated[str, typer.Argument(help="Name of the task or its beginning.")],
    early: Annotated[
        str, typer.Option(metavar="REASON", help="Finish before all planned raters are done, and say why.")
    ] = "",
) -> None:
    """Close a task for good, and write its ratings to data/ratings."""
    from srpo_core.rating.answers import Refused
    from srpo_core.rating.finishing import answers_of_task, complete_raters
    from srpo_core.rating.finishing import finish as finish_task
    from srpo_core.rating.gate_figures import version_of
    from srpo_core.rating.results_text import has_been_seen
    from srpo_core.rating.stored import About, path_of, write_ratings
    from srpo_core.rating.task import find_task

    found = find_task(task)
    answers = answers_of_task(found)
    refused = Refused()
    ratings = finish_task(found, answers, early=early, refused=refused)
    path, complete = path_of(found.id), len(complete_raters(found, answers))
    about = About(
        models=found.models,
        items=len(found.items),
        raters=found.num_raters,
        # closed without a reason: at the planned end, also if a rater was forgotten since
        complete=complete if answers.closed() else max(complete, found.num_raters),
        effect=found.planned.plan["effect"],
        power=found.planned.plan["power"],
        closed=answers.closed() or "",
        looked_early=has_been_seen(found.directory),
    )
    write_ratings(path, ratings, about)
    if refused.entries:
        typer.echo(refused.summary(), err=True)
    typer.echo(
        f"ratings {path}: {len(ratings)} answers of {len(answers.counts())} raters, {complete} of whom "
        "have rated every item"
    )
    typer.echo(f"gate    {version_of(path)}, an entry of gate.ratings (docs/gates.md)")
    typer.echo(
        "next    'srpo rate results TASK' shows them, 'srpo data ratings' makes a version of the ratings"
    )


@rate_app.command()
def forget(
    rater: Annotated[str, typer.Argument(help="Pseudonym of a rater who asks for it.")],
) -> None:
    """Delete all answers of a rater from open and finished tasks. The next version of the ratings says so."""
    from srpo_core.rating.collected import FILE
    from srpo_core.rating.exporting import forget_refused
    from srpo_core.rating.forgetting import forget_rater
    from srpo_core.rating.stored import DIRECTORY
    from srpo_core.rating.task import directory_of, known_tasks
    from srpo_core.workspace.rating_versions import fetch_newest

    fetch_newest(Path.cwd(), DIRECTORY)
    databases = {task: directory_of(task) / FILE for task in known_tasks()}
    for known in known_tasks():
        forget_refused(directory_of(known), rater)
    for task, count in forget_rater(DIRECTORY, rater, databases).items():
        typer.echo(f"task    {task}: {count} answers of {rater} are deleted")
    typer.echo("next    'srpo data ratings' makes a version without them")


def _prepare(
    settings: "Settings", model: str, against: Sequence[str], planned: tuple[str, float, float, int]
) -> "Task":
    """Plan a task and generate its images."""
    from srpo_core.rating.power import plan_items
    from srpo_core.rating.task import plan_contents, write_task
    from srpo_core.rating.task_images import choices, make_images
    from srpo_core.rating.weights import weights_digest

    protocol, effect, power, raters = planned
    resolved = [resolve_model(one) for one in (model, *against)]
    transformers = dict(resolved)
    if len(transformers) < len(resolved):
        raise errors.ConfigError(
            f"{model} {' '.join(against)}: a model is compared with itself; give others with --against"
        )
    plan = plan_items(protocol, effect, power=power, raters=raters, models=len(transformers))
    digests = {name: weights_digest(settings.model, path) for name, path in transformers.items()}
    candidate = next(iter(transformers))
    task = write_task(
        plan_contents(plan, choices(settings), digests, candidate=candidate, seed=settings.seed)
    )
    typer.echo(f"task    {task.id} in {shortest(task.directory)}")
    typer.echo(f"plan    {_describe(plan, task)}")
    if len(task.planned.prompts) < plan.prompts:
        typer.echo(
            f"note    the plan is of {plan.prompts} prompts, and there are {len(task.planned.prompts)}: images of one prompt "
            "depend on each other, so the chance is lower"
        )
    checkpoints = {name for name, path in transformers.items() if path is not None and _is_checkpoint(name)}
    make_images(task, transformers, settings, keep=[name for name in transformers if name not in checkpoints])
    return task


def _describe(plan: "Plan", task: "Task") -> str:
    kinds = [item.kind for item in task.items.values()]
    shown = ", ".join(
        f"{kinds.count(kind)} {text}"  # type: ignore[arg-type]
        for kind, text in (("plain", "plain"), ("repeat", "repeated"), ("check", "obvious"))
    )
    return (
        f"{plan.raters} raters, {len(kinds)} items each ({shown}): an effect of {plan.effect:g} is shown with a chance "
        f"of {plan.expected_power:.0%}"
    )


def resolve_model(reference: str) -> tuple[str, Path | None]:
    """Return the name of a model in the task, and the directory of its weights; None for the base.

    Raises:
        ArtifactError: it is a path, and no checkpoint.
        StoreError: the store has no such release, or one of its files is missing or altered.
    """
    from srpo_core.release.champion import champion_transformer
    from srpo_core.release.references import resolve
    from srpo_core.storage import open_store

    if reference == artifacts.BASE:
        return reference, None
    if _is_checkpoint(reference):
        path = shortest(Path(os.path.normpath(reference)))  # the same name however the path is written
        return path, Path(path)
    if Path(reference).exists():
        raise errors.ArtifactError(
            f"{reference} is not a checkpoint: give a directory with a transformer's config.json and weights or adapters"
        )
    version = resolve(open_store(), reference)
    return version, champion_transformer(version)


def _is_checkpoint(reference: str) -> bool:
    return (Path(reference) / "config.json").is_file()


def _serve(task: "Task", host: str, port: int | None, *, is_private: bool) -> None:
    from srpo_core.rating.finishing import answers_of_task
    from srpo_core.rating.server import Session, bind, create_app, make_server

    answers = answers_of_task(task)
    if answers.closed() is not None:
        raise errors.DataError(f"task {task.id} is finished and takes no more answers")
    secret = None if is_private else _secret()
    app = create_app(Session(task, answers), secret)
    with bind(host, port, task.directory) as opened:
        typer.echo(f"page    {_address(host, opened.getsockname()[1], task.token)}")
        typer.echo("raters  each chooses a pseudonym; ?rater=NAME after the address sets it")
        if secret is not None:
            from srpo_core.runtime.prefect_api import secret_file

            typer.echo(f"secret  cat {shortest(secret_file(artifacts.home()))} (the page asks for it once)")
        typer.echo("end     Ctrl-C; the same command resumes")
        make_server(app).run(sockets=[opened])


def _secret() -> str:
    from flows.server_secret import SERVER_SECRET, server_environment

    return server_environment(artifacts.home())[SERVER_SECRET].strip()


def _address(host: str, port: int, token: str) -> str:
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104  # the user has asked for it
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/{token}/"
