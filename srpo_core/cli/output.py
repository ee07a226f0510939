"""Output that several commands share."""

from pathlib import Path
from typing import Final

import typer

from srpo_core import errors

REFUSED: Final = errors.GateError.exit_code


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
