"""Commands for data versions: make one, show it, compare two."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import typer
from typer.core import TyperGroup

from srpo_core.cli.app import app

PANEL: Final = "Data"
DEFAULT: Final = "add"


class DataCommands(TyperGroup):
    """The commands of `srpo data`; a first argument that names none of them is the source of `add`."""

    def parse_args(self, ctx: Any, args: Sequence[str]) -> list[str]:
        """Insert the default command; `srpo data ./show` or `srpo data add show` adds a directory named `show`."""
        known = {*self.commands, *ctx.help_option_names}
        given = list(args)
        return super().parse_args(ctx, [DEFAULT, *given] if given and given[0] not in known else given)


data_app = typer.Typer(
    cls=DataCommands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data", rich_help_panel=PANEL)


@data_app.callback()
def show_help(context: typer.Context) -> None:
    """Make a new version of the data ('srpo data SOURCE'), show one, or compare two."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data_app.command(DEFAULT)
def add(
    source: Annotated[str, typer.Argument(help="Directory in HPDv2's layout.")],
    name: Annotated[
        str, typer.Option(help="Name of the data set, which becomes a directory in data/.")
    ] = "hpd",
    audit: Annotated[
        Literal["md5", "full"],
        typer.Option(
            help="How the remote is compared after the push: md5 believes an MD5 that the store reports and reads "
            "other objects, full reads all objects."
        ),
    ] = "md5",
) -> None:
    """Make a new version of the data: check it, track it with DVC, push it, tag it. 'srpo data SOURCE' does this, too."""
    from flows.terminal import prepare_terminal

    prepare_terminal()
    from flows.data import data as data_flow

    tag = data_flow(source=source, name=name, audit=audit)
    typer.echo(f"tag   {tag}")
    typer.echo(f"next  srpo align --revision {tag} --set ingest.source=data/{name}")
