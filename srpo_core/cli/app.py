"""The typer application that the command modules register with, and what every command needs."""

import logging
import os
import sys
import warnings
from typing import Annotated, Final

import typer

import srpo_core
from srpo_core.runtime.telemetry import quiet_environment

app = typer.Typer(
    name="srpo",
    help="Align a text-to-image model with human preference by SRPO, and ship it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

OURS: Final = ("srpo_core", "flows")


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version of srpo and exit")] = False,
) -> None:
    """Set up what every command needs."""
    context.obj = debug  # read from the arguments by `main`, where the errors arrive
    if version:
        typer.echo(f"srpo {srpo_core.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(OURS))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    os.environ.update(quiet_environment())
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading, gone in a blink
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # Python 3.11's end of life
