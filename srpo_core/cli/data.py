"""Commands for data versions: make one, show it, compare two, watch for drift."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import typer

from srpo_core.cli.app import app
from srpo_core.cli.groups import group_with_default
from srpo_core.cli.options import parse_ingest_changes

if TYPE_CHECKING:
    from flows.watch import WatchResult

PANEL: Final = "Data"
DEFAULT: Final = "add"


data_app = typer.Typer(
    cls=group_with_default(DEFAULT),
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
    source: Annotated[
        str, typer.Argument(help="Directory or file of the data set, or s3://bucket/prefix (docs/data.md).")
    ],
    name: Annotated[
        str, typer.Option(help="Name of the data set, which becomes a directory in data/.")
    ] = "hpd",
    format_name: Annotated[
        str, typer.Option("--format", help="Format of the data set: hpdv2, pairs, images or prompts.")
    ] = "hpdv2",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of ingest, for instance ingest.test_share=0.2.",
        ),
    ] = None,
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
    from srpo_core.config import patched
    from srpo_core.workspace.checkout import require_checkout
    from srpo_core.workspace.data_settings import uncommitted_settings

    ingest = _require_valid(source, format_name, changes or [])
    checkout = require_checkout(Path.cwd())
    uncommitted = uncommitted_settings(checkout)
    ingest = patched(uncommitted, ingest)
    prepare_terminal()
    from flows.data import data as data_flow
    from flows.lost_server import reporting_a_lost_server
    from srpo_core.workspace.data_settings import as_options, next_command

    with reporting_a_lost_server():
        tag = data_flow(source=source, name=name, format_name=format_name, ingest=ingest, audit=audit)
    typer.echo(f"tag   {tag}")
    options = [*as_options(uncommitted), *(changes or [])]
    typer.echo(f"next  {next_command(tag, name, format_name, options)}")


def _require_valid(source: str, format_name: str, changes: list[str]) -> dict[str, Any]:
    """Check source and settings before a server starts; return the changed settings of ingest."""
    from srpo_core.config import patched_settings
    from srpo_core.data.sources import require_source, source_format

    ingest = parse_ingest_changes(changes, "srpo data")
    settings = patched_settings(Path.cwd(), profile=None, patch={"ingest": ingest}).ingest
    source_format(format_name).check_columns(settings.columns)
    if not source.startswith("s3://"):
        require_source(source, format_name)
    return ingest


@data_app.command()
def show(
    tag: Annotated[str, typer.Argument(help="A data version: data/NAME/HASH.")],
    page: Annotated[
        Path | None, typer.Option(help="Where the page is written; default: .srpo/data/NAME-HASH.html.")
    ] = None,
) -> None:
    """Show what a version contains: print its figures, and write a page with samples.

    Control words are those of params.yaml. What is not in DVC's cache is fetched; the checkout is not touched.
    """
    from rich.console import Console

    from srpo_core.cli.data_views import show_version
    from srpo_core.report.data_text import figure_table

    written, figures = show_version(tag, page)
    Console().print(figure_table(figures))
    typer.echo(f"page  {written}")


@data_app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A data version: data/NAME/HASH.")],
    new: Annotated[str, typer.Argument(help="Another version, of the same data set or of another one.")],
    page: Annotated[
        Path | None, typer.Option(help="Also write the comparison as a page to this file.")
    ] = None,
) -> None:
    """Compare two versions: records added, removed and changed, and the figures that moved."""
    from rich.console import Console

    from srpo_core.cli.data_views import compare_versions
    from srpo_core.report.data_text import change_table, example_lines, move_table

    changes, moves = compare_versions(old, new, page)
    console = Console(highlight=False)
    console.print(change_table(changes))
    for line in example_lines(changes):
        typer.echo(f"  {line}")
    if moves:
        console.print(move_table(moves))
    else:
        typer.echo("all figures are equal")
    if page:
        typer.echo(f"page  {page}")


@data_app.command()
def agreement(
    tag: Annotated[str, typer.Argument(help="A data version: data/NAME/HASH.")],
    max_pairs: Annotated[
        int | None, typer.Option(min=1, help="Most pairs to score; default: check_reward.max_pairs.")
    ] = None,
) -> None:
    """Measure how often each reward of params.yaml prefers what people preferred, by style, with 95 % intervals."""
    from rich.console import Console

    from srpo_core.cli.data_views import reward_agreement
    from srpo_core.report.data_text import agreement_table

    Console(highlight=False).print(agreement_table(reward_agreement(tag, max_pairs)))


@app.command(rich_help_panel=PANEL)
def watch(
    version: Annotated[
        str | None,
        typer.Option(help="Data version to compare; default: the newest one of production's data set."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts to compare instead of a version.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of ingest that reads the file of prompts."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the data set that is made of the file.")] = "prompts",
    start: Annotated[
        bool | None,
        typer.Option(
            "--start/--no-start", help="Start a run if the data moved; default: if PREFECT_API_URL is set."
        ),
    ] = None,
) -> None:
    """Compare the newest data with those of production; start a run if styles or agreement moved beyond the settings."""
    from flows.terminal import prepare_terminal
    from srpo_core.runtime.prefect_api import API_URL
    from srpo_core.workspace.checkout import require_checkout

    ingest = parse_ingest_changes(change or [], "srpo watch")
    require_checkout(Path.cwd())
    prepare_terminal()
    from flows.lost_server import reporting_a_lost_server
    from flows.watch import watch as watch_flow

    starts = bool(os.environ.get(API_URL, "").strip()) if start is None else start
    with reporting_a_lost_server():
        result = cast(
            "WatchResult",
            watch_flow(version=version, prompts=prompts, ingest=ingest or None, name=name, start=starts),
        )
    typer.echo(result.line)
