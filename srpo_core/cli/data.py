"""Commands for data versions."""

from typing import Annotated, Final

import typer

from srpo_core.cli.app import app

PANEL: Final = "Data"


@app.command(rich_help_panel=PANEL)
def data(
    source: Annotated[str, typer.Argument(help="Directory in HPDv2's layout.")],
    name: Annotated[
        str, typer.Option(help="Name of the data set, which becomes a directory in data/.")
    ] = "hpd",
) -> None:
    """Make a new version of the data: check it, track it with DVC, push it, tag it."""
    from flows.terminal import prepare_terminal

    prepare_terminal()
    from flows.data import data as data_flow

    tag = data_flow(source=source, name=name)
    typer.echo(f"tag   {tag}")
    typer.echo(f"next  srpo align --revision {tag} --set ingest.source=data/{name}")
