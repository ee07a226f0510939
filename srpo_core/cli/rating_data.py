"""Commands for ratings as data: make a version of them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from srpo_core.cli.data import data_app


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
