"""Commands for past runs: list them, compare two, remove old ones."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from srpo_core.artifacts import home
from srpo_core.cli.app import app
from srpo_core.credentials import mask_credentials
from srpo_core.errors import SrpoError

if TYPE_CHECKING:
    from rich.table import Table

    from srpo_core.workspace.retention import Expired
    from srpo_core.workspace.run_comparison import Difference, RunComparison
    from srpo_core.workspace.run_list import ListedRun
    from srpo_core.workspace.run_record import RunRecord

PANEL: Final = "Past runs"
FLOW: Final = "align"
SERVER_SECONDS: Final = 2.0  # for 200 runs
SERVER_RUNS: Final = (
    200  # asked for even if fewer are listed: how killed runs have ended, and how many more there are
)
SHOWN_SETTINGS: Final = 4
MB: Final = 1e6

Json = Annotated[bool, typer.Option("--json", help="Print JSON, complete, for programs.")]

runs_app = typer.Typer(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs_app, name="runs", rich_help_panel=PANEL)


@runs_app.callback()
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Number of newest runs to list.")] = 20,
    as_json: Json = False,
) -> None:
    """List the runs of this checkout, the newest first; 'srpo runs diff A B' compares two.

    With PREFECT_API_URL, or while 'srpo up' runs, those that only the server knows are listed, too.
    """
    if context.invoked_subcommand is not None:
        return
    from srpo_core.workspace.run_comparison import Presets
    from srpo_core.workspace.run_list import list_runs
    from srpo_core.workspace.run_record import read_records

    records = read_records(home())
    asked = max(limit, SERVER_RUNS)
    on_server = _runs_on_server(asked)
    listed = list_runs(records, Presets(Path.cwd()), on_server)
    if as_json:
        typer.echo(json.dumps([run.as_json() for run in listed[:limit]], indent=1, ensure_ascii=False))
        return
    if not listed:
        typer.echo("no run yet: 'srpo align' starts one")
        return
    _print_runs(listed[:limit])
    if len(listed) > limit:
        more = "at least " if len(on_server) == asked else ""
        typer.echo(f"{more}{len(listed) - limit} older runs: repeat it with --limit {len(listed)}")


@runs_app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A run: its id or the beginning of it, ref, release or name.")],
    second: Annotated[str, typer.Argument(help="The run to compare it with.")],
    as_json: Json = False,
) -> None:
    """Compare two runs: settings, data, code, figures, and the rules of the gate side by side."""
    from srpo_core.workspace.run_commit import files_that_differ
    from srpo_core.workspace.run_comparison import compare_runs
    from srpo_core.workspace.run_record import find_record, read_records

    records = read_records(home())
    both = find_record(records, first), find_record(records, second)
    compared = compare_runs(*both, lambda one, other: files_that_differ(Path.cwd(), one, other))
    if as_json:
        names = {"first": both[0].run_id, "second": both[1].run_id}
        typer.echo(json.dumps({**names, **asdict(compared)}, indent=1, ensure_ascii=False))
        return
    for number, part in enumerate(_tables(both, compared)):
        if number:
            typer.echo()
        _print(part)


@app.command(rich_help_panel=PANEL)
def clean(
    keep_days: Annotated[
        float, typer.Option(min=0, help="Keep what was used in the last so many days.")
    ] = 30.0,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it instead of listing it.")] = False,
) -> None:
    """List old runs, resume state, caches and Ray sessions, or remove them with --delete.

    Kept are the newest run, runs with a release in the store, and all that a running process uses.
    """
    from srpo_core.storage import open_store
    from srpo_core.workspace import retention
    from srpo_core.workspace.checkout import require_checkout

    before = datetime.now(UTC) - timedelta(days=keep_days)
    found = retention.open_retention(require_checkout(Path.cwd()), home(), before=before)
    runs = list(retention.expired_runs(found, open_store))
    expired = [*runs, *retention.expired_state(found)]
    total = sum(_clean(one, delete=delete) for one in expired)
    objects, kept = retention.expired_objects(found, () if delete else runs)
    if objects:
        total += _clean(objects, delete=delete)
    elif kept:
        typer.echo(f"kept          DVC cache: {kept}")
    if not expired and not objects:
        typer.echo(f"nothing to remove: all was used in the last {keep_days:g} days, or is kept")
        return
    typer.echo(f"{'removed     ' if delete else 'would remove'}  {total / MB:,.1f} MB in all")
    if not delete:
        typer.echo("next          repeat it with --delete")


def _clean(one: "Expired", *, delete: bool) -> int:
    """Print a line, remove what it names if asked to, and return the bytes."""
    size = f"{one.num_bytes / MB:>10,.1f} MB"
    if delete and not one.remove():
        typer.echo(f"kept          {size}  {one.what} {one.name}: a process is using it by now")
        return 0
    typer.echo(f"{'removed     ' if delete else 'would remove'}  {size}  {one.what} {one.name}")
    return one.num_bytes


def _runs_on_server(limit: int) -> Sequence[Mapping[str, Any]]:
    """Return the newest runs that the server of PREFECT_API_URL, or else of `srpo up`, knows.

    A server that does not answer is reported in one line.
    """
    from srpo_core.runtime.prefect_api import API_URL, list_flow_runs, with_own_secret
    from srpo_core.services.running import with_running_services

    environment = with_own_secret(with_running_services(os.environ, home()), home())
    if not environment.get(API_URL, "").strip():
        return []
    try:
        return list_flow_runs(FLOW, environment, limit=limit, seconds=SERVER_SECONDS)
    except SrpoError as error:
        typer.echo(f"only the records of this checkout are listed: {mask_credentials(str(error))}", err=True)
        return []


def _print_runs(runs: Sequence["ListedRun"]) -> None:
    from rich.table import Table

    from srpo_core.report.text import visible
    from srpo_core.workspace.run_list import objective_text, settings_text
    from srpo_core.workspace.run_record import REF_PREFIX

    table = Table(box=None)
    for name in ("run", "started", "state"):
        table.add_column(name, no_wrap=True)  # a name that is cut off could not be given to another command
    for name in ("verdict", "objective", "settings", "release"):
        table.add_column(name, overflow="fold")
    for run in runs:
        preset = [run.preset] if run.preset else []
        settings = settings_text([*preset, *_assignments(run.settings or {})], SHOWN_SETTINGS + len(preset))
        verdict = run.verdict or ""
        if run.refused_by:
            verdict += f" by {settings_text(run.refused_by, 1)}"
        figure = objective_text(run.objective)
        started = run.started[: len("2026-11-30T12:00")].replace("T", " ")
        row = (run.run, started, run.state, verdict, figure, settings, run.release or "")
        table.add_row(*map(visible, row))  # a server's names are not ours
    _print(table)
    if any(run.ref for run in runs):
        typer.echo(f"code and results of a run: git checkout {REF_PREFIX}RUN && dvc repro")


def _assignments(settings: Mapping[str, Any]) -> Iterator[str]:
    from srpo_core.workspace.run_comparison import shown

    for key, value in settings.items():
        yield f"{key}={shown(value)}"


def _tables(both: Sequence["RunRecord"], compared: "RunComparison") -> Iterator["Table"]:
    names = [record.run_id for record in both]
    yield _table("run", names, compared.about)
    yield _table("setting", names, compared.settings)
    if compared.files is None:
        typer.echo("code     not compared: a run has no commit of its own")
    elif compared.files:
        typer.echo(f"code     {len(compared.files)} files differ: {', '.join(compared.files[:5])}")
    yield _table("rule of the gate", names, compared.rules, change=True, rules=True)
    yield _table("figure", names, compared.figures, change=True)


def _table(
    what: str,
    names: Sequence[str],
    lines: Sequence["Difference"],
    *,
    change: bool = False,
    rules: bool = False,
) -> "Table":
    from rich.table import Table

    cell = _rule_cell if rules else _cell
    table = Table(what, *names, *(["change"] if change else []), box=None)
    for line in lines:
        row = [line.name, cell(line.first), cell(line.second)]
        table.add_row(*row, *([_change(line)] if change else []))
    if not lines:
        table.add_row("no difference")
    return table


def _cell(value: Any) -> str:
    from srpo_core.workspace.run_comparison import ABSENT, shown

    if value is None or value == ABSENT:
        return "" if value is None else ABSENT
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def _rule_cell(rule: Any) -> str:
    """Return a rule of the gate as text: verdict, value and interval; a run without this rule has another text."""
    if not isinstance(rule, Mapping):
        return _cell(rule)
    figure = "" if rule["value"] is None else f"{rule['value']:+.4g}"
    ends = "" if rule["low"] is None else f" [{rule['low']:+.4g}, {rule['high']:+.4g}]"
    return f"{rule['verdict']} {figure}{ends}".strip()


def _change(line: "Difference") -> str:
    values = [one.get("value") if isinstance(one, Mapping) else one for one in (line.first, line.second)]
    numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    return f"{numbers[1] - numbers[0]:+.4g}" if len(numbers) == len(values) else ""


def _print(table: "Table") -> None:
    """Print a table as wide as the terminal; in a file or a pipe no cell is broken."""
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False, markup=False, soft_wrap=width is not None).print(table)
