"""Commands for collected ratings: show their results, make a version of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from srpo_core.cli.data import data_app
from srpo_core.cli.rating import rate_app
from srpo_core.errors import DataError

if TYPE_CHECKING:
    from srpo_core.rating.answers import Refused
    from srpo_core.rating.records import Rating
    from srpo_core.rating.results import Progress


@data_app.command()
def ratings(
    source: Annotated[
        Path | None, typer.Argument(help="Directory with the files of finished tasks; default: data/ratings.")
    ] = None,
    audit: Annotated[
        Literal["md5", "full"],
        typer.Option(help="How the remote is compared after the push, as in 'srpo data add'."),
    ] = "md5",
    enough: Annotated[
        int, typer.Option(min=1, help="Emit the event ratings.enough each time so many further answers came.")
    ] = 200,
) -> None:
    """Make a new version of people's ratings: check them, track them with DVC, push them, tag them."""
    from flows.terminal import prepare_terminal
    from srpo_core.workspace.checkout import require_checkout

    require_checkout(Path.cwd())
    prepare_terminal()
    from flows.lost_server import reporting_a_lost_server
    from flows.ratings import ratings as ratings_flow

    with reporting_a_lost_server():
        tag = ratings_flow(source=None if source is None else str(source), audit=audit, enough=enough)
    typer.echo(f"tag   {tag}")
    typer.echo(f"next  git checkout {tag} -- data/ratings.dvc && git commit -m 'Ratings {tag}'")


@rate_app.command()
def results(
    task: Annotated[str, typer.Argument(help="Name of the task or its beginning, or a file of ratings.")],
    early: Annotated[
        bool,
        typer.Option("--early", help="Before the planned end: with wider intervals, from now on for good."),
    ] = False,
    confidence: Annotated[
        float, typer.Option(min=0.8, max=0.999, help="Confidence of the intervals.")
    ] = 0.95,
) -> None:
    """Show what people found. Before the planned end only with --early."""
    from srpo_core.rating.results import summarize, widening
    from srpo_core.rating.results_text import result_lines

    ratings, progress, models = _answers(task, early=early)
    widened = widening(ratings, progress, confidence=confidence)
    for line in result_lines(summarize(ratings, confidence=confidence, widened=widened, models=models)):
        typer.echo(line)


def _answers(task: str, *, early: bool) -> "tuple[list[Rating], Progress, list[str]]":
    """Return answers, progress and models of a task.

    A finished task is read from its file, an open one from its database; then it is noted that results were seen.
    """
    from srpo_core.rating.answers import Refused
    from srpo_core.rating.finishing import answers_of_task, complete_raters, valid_ratings
    from srpo_core.rating.results import Progress, require_end
    from srpo_core.rating.results_text import note_seen
    from srpo_core.rating.stored import path_of, read_about, read_ratings
    from srpo_core.rating.task import find_task

    path, refused = Path(task), Refused()
    if not path.is_file():
        found = find_task(task)
        path = path_of(found.id)
        answers = answers_of_task(found)
        if answers.closed() is None or not path.is_file():
            complete = len(complete_raters(found, answers))
            progress = Progress(len(found.items), found.num_raters, complete, looked_early=True)
            require_end(progress, early=early)
            if not early:
                raise DataError(
                    f"all planned raters have answered, but task {found.id} is open: end it with 'srpo rate finish {found.id}', or "
                    "add --early"
                )
            note_seen(found.directory)
            ratings = valid_ratings(found, answers.all(), refused)
            _show_refused(refused)
            return ratings, progress, list(found.models)
    about = read_about(path)
    complete = about.raters if about.closed else about.complete
    progress = Progress(about.items, about.raters, complete, about.looked_early)
    ratings = read_ratings([path], refused=refused)
    _show_refused(refused)
    return ratings, progress, list(about.models)


def _show_refused(refused: "Refused") -> None:
    if refused.entries:
        typer.echo(refused.summary(), err=True)
