"""The typer application with which the modules of commands register, and its global options."""

import logging
import os
import sys
import warnings
from typing import Annotated, Final

import typer

import srpo_core
from srpo_core.credentials import mask_credentials
from srpo_core.runtime.machine import adapt_to_machine
from srpo_core.runtime.telemetry import quiet_environment

app = typer.Typer(
    name="srpo",
    help="Align a text-to-image model with human preference (SRPO), and release it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

OWN_PACKAGES: Final = ("srpo_core", "flows")


class MaskingFormatter(logging.Formatter):
    """Format records, with their tracebacks, without the credentials in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        return mask_credentials(super().format(record))


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Set up logging, warnings and the environment of every command."""
    context.obj = debug  # `main` handles the errors and reads this option from sys.argv
    if version:
        typer.echo(f"srpo {srpo_core.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or record.name.startswith(OWN_PACKAGES)
    )
    handler.setFormatter(MaskingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OWN_PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    # diffusers imports it, and it warns of a kernel for CPUs that it can do without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.update(quiet_environment())
    adapt_to_machine()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading takes a moment only
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # Python 3.11's end of life
