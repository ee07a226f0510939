"""Run the command line. An error is printed as one line; exit codes are those of srpo_core/errors.py."""

import sys
from typing import Any, Final

import typer

from srpo_core import errors
from srpo_core.cli import checks, data, past_runs, production, rating, release, run, services
from srpo_core.cli import rating_data as _rating_data  # noqa: F401  # registers `srpo data ratings`
from srpo_core.cli.app import app
from srpo_core.credentials import mask_credentials
from srpo_core.runtime.full_disk import REMEDY, is_full
from srpo_core.runtime.streams import end_unread, has_lost_reader, prepare_streams, restart_in_utf8

# importing the modules registers their commands; `srpo --help` lists the panels in this order
PANELS: Final = (
    run.PANEL,
    services.PANEL,
    past_runs.PANEL,
    data.PANEL,
    release.PANEL,
    rating.PANEL,
    production.PANEL,
    checks.PANEL,
)
INTERRUPTED: Final = 130
USAGE_ERROR: Final[Any] = typer.BadParameter.__base__  # typer does not export this class of click's


def main() -> None:
    """Run the command line; print a `SrpoError` as one line and exit with its code."""
    restart_in_utf8()
    prepare_streams()
    try:
        code = _run()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # typer turns the one into the other
        if not has_lost_reader():
            raise
        end_unread()
    sys.exit(code)


def _run() -> int:
    """Run the command and return its exit code; print an error as one line."""
    try:
        return root_command()(prog_name="srpo", standalone_mode=False) or 0
    except errors.SrpoError as error:
        if "--debug" in sys.argv:
            raise
        return _fail(str(error), error.exit_code)
    except OSError as error:  # for instance a full disk or a path that cannot be written
        if "--debug" in sys.argv or (isinstance(error, BrokenPipeError) and has_lost_reader()):
            raise
        remedy = f": {REMEDY}" if is_full(error) else ""
        return _fail(" ".join(str(error).split()) + remedy, errors.SrpoError.exit_code)
    except USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx else "srpo"
        return _fail(f"{error.format_message().rstrip('.')}: see '{command} --help'", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted; repeat the same command to resume", INTERRUPTED)


def root_command() -> Any:
    """Return the command `srpo`, whose commands are in the order of their panels."""
    root: Any = typer.main.get_command(app)
    root.commands = dict(
        sorted(root.commands.items(), key=lambda item: PANELS.index(item[1].rich_help_panel))
    )
    return root


def _fail(line: str, exit_code: int) -> int:
    typer.echo(f"srpo: error: {mask_credentials(line)}", err=True)
    return exit_code
