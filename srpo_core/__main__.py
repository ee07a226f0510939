"""The command `srpo`: one line per error, exit codes as in srpo_core/errors.py."""

import importlib
import inspect
import logging
import pkgutil
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer

    from srpo_core import config, errors
except ModuleNotFoundError as missing:
    sys.exit(
        f"srpo: error: {sys.executable} has no {missing.name}: "
        "run 'make setup', then 'source .venv/bin/activate'"
    )

app = typer.Typer(
    name="srpo",
    help="Align a text-to-image model with human preference by SRPO, and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="show the whole trace of an error")] = False,
) -> None:
    """Set up what every command needs."""
    context.obj = debug
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


@app.command()
def stage(name: Annotated[str, typer.Argument(help="a stage of dvc.yaml")]) -> None:
    """Run one stage on params.yaml in this directory. `dvc repro` calls this."""
    _assert_code_of(Path.cwd())
    settings = config.load_settings()
    run = _stage_function(name)
    run(**{part: getattr(settings, part) for part in inspect.signature(run).parameters})


def _stage_function(name: str) -> Any:
    """The `run` of srpo_core/stages/<name>.py; an unknown name is a `ConfigError`."""
    from srpo_core import stages

    known = {module.name: module.name for module in pkgutil.iter_modules(stages.__path__)}
    errors.pick(known, name, "stage")
    return importlib.import_module(f"srpo_core.stages.{name}").run


def _assert_code_of(directory: Path) -> None:
    """A run uses the code that lies beside its settings, never another checkout's."""
    here = directory / "srpo_core"
    if here.is_dir() and not Path(config.__file__).samefile(here / "config.py"):
        raise errors.ConfigError(
            f"{directory} has code of its own, but {Path(config.__file__).parent} was imported: "
            f"start it as 'python -m srpo_core' in that directory, or with PYTHONPATH={directory}"
        )


def main() -> None:
    """Run the command line; a `SrpoError` is printed as one line and becomes the exit code."""
    try:
        app(standalone_mode=False)
    except errors.SrpoError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"srpo: error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
