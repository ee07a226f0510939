"""Commands for versions of the data."""

from typing import Annotated, Final

import typer

from srpo_core.cli.app import app

PANEL: Final = "Data"


@app.command(rich_help_panel=PANEL)
def data(
    source: Annotated[str, typer.Argument(help="directory in HPDv2's layout")],
    name: Annotated[str, typer.Option(help="name of the data set, a directory below data/")] = "hpd",
) -> None:
    """Make a new version of the data: check it, version it with DVC, tag it, push it."""
    from flows.terminal import run_data

    tag = run_data(source=source, name=name)
    typer.echo(f"tag   {tag}")
    typer.echo(f"next  srpo align --revision {tag} --set ingest.source=data/{name}")
