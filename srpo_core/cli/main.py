"""Run the command line. An error is printed as one line; exit codes are those of srpo_core/errors.py."""

import sys
from typing import Any, Final

import typer

from srpo_core import errors
from srpo_core.cli import checks, data, release, run
from srpo_core.cli.app import app
from srpo_core.credentials import mask_credentials

# importing the modules registers their commands; `srpo --help` lists the panels in this order
PANELS: Final = (run.PANEL, data.PANEL, release.PANEL, checks.PANEL)
INTERRUPTED: Final = 130
USAGE_ERROR: Final[Any] = typer.BadParameter.__base__  # typer does not export this class of click's


def main() -> None:
    """Run the command line; print a `SrpoError` as one line and exit with its code."""
    try:
        code = root_command()(prog_name="srpo", standalone_mode=False)
    except errors.SrpoError as error:
        if "--debug" in sys.argv:
            raise
        _fail(str(error), error.exit_code)
    except OSError as error:  # for instance a full disk or a path that cannot be written
        if "--debug" in sys.argv:
            raise
        _fail(" ".join(str(error).split()), errors.SrpoError.exit_code)
    except USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx else "srpo"
        _fail(f"{error.format_message().rstrip('.')}: see '{command} --help'", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; repeat the same command to resume", INTERRUPTED)
    sys.exit(code or 0)


def root_command() -> Any:
    """Return the command `srpo`, whose commands are in the order of their panels."""
    root: Any = typer.main.get_command(app)
    root.commands = dict(
        sorted(root.commands.items(), key=lambda item: PANELS.index(item[1].rich_help_panel))
    )
    return root


def _fail(line: str, exit_code: int) -> None:
    typer.echo(f"srpo: error: {mask_credentials(line)}", err=True)
    sys.exit(exit_code)
