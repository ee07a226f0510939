"""Output that several commands share."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from srpo_core import errors

if TYPE_CHECKING:
    from srpo_core.runtime.channels import Message

REFUSED: Final = errors.GateError.exit_code

log = logging.getLogger(__name__)


def show_verdict(*, passed: bool, reason: str) -> None:
    """Print the verdict of the gate and its reason."""
    verdict = (
        typer.style("passed", fg="green", bold=True)
        if passed
        else typer.style("refused", fg="red", bold=True)
    )
    typer.echo(f"verdict  {verdict}: {reason}")


def shortest(where: Path | str) -> str:
    """Return a path relative to the working directory if it is inside it; another path, or a URI, unchanged."""
    if "://" in str(where):
        return str(where)
    path = Path(where)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def notify(message: "Message | None") -> None:
    """Send a message to the channels of SRPO_NOTIFY, if there is one; a channel that fails is one line of the log."""
    from srpo_core.runtime.channels import send

    if message is not None:
        send(message, lambda line: log.warning("%s", line))
