"""Commands that check or plan a run: settings, machine, weights, cost."""

from pathlib import Path
from typing import Annotated, Final

import typer

from srpo_core import errors
from srpo_core.cli.app import app
from srpo_core.cli.options import parse_changes

PANEL: Final = "Settings and machine"


@app.command(rich_help_panel=PANEL)
def profile(
    name: Annotated[str | None, typer.Argument(help="Name of a preset; default: list all presets.")] = None,
) -> None:
    """Print a preset of the settings, for instance: srpo profile tiny > params.yaml."""
    from srpo_core import config

    if name is None:
        typer.echo("\n".join(config.profile_names()))
        return
    typer.echo(config.profile_path(name).read_text(encoding="utf-8"), nl=False)


@app.command(rich_help_panel=PANEL)
def doctor(
    profile: Annotated[str | None, typer.Option(help="Preset to check; default: params.yaml.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as for align.")
    ] = None,
) -> None:
    """Check whether this machine has what a run needs.

    If the settings cannot be read, that is a finding, and what needs no settings is still checked.
    """
    from srpo_core import config
    from srpo_core.preflight.doctor import examine

    patch = parse_changes(change or [])
    if profile:
        config.profile_path(profile)
    settings: config.Settings | errors.ConfigError
    try:
        settings = config.patched_settings(Path(), profile=profile, patch=patch)
    except errors.ConfigError as error:
        settings = error
    findings = list(examine(settings))
    for finding in findings:
        mark = typer.style("✓", fg="green") if finding.good else typer.style("✗", fg="red")
        typer.echo(f"{mark} {finding.what:<10}{finding.detail}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(errors.SrpoError.exit_code)


@app.command(rich_help_panel=PANEL)
def notify(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to each channel.")] = False,
    late: Annotated[
        bool,
        typer.Option("--late", help="Send a message for scheduled runs that no worker has started in time."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="As --late, every minute, until it is ended.")
    ] = False,
) -> None:
    """List the channels of SRPO_NOTIFY, or send messages to them.

    Exit code 1 if a channel cannot be used or fails. --late and --watch ask the server of PREFECT_API_URL.
    """
    from srpo_core.credentials import NOTIFY
    from srpo_core.runtime.channels import channels, check, deliver
    from srpo_core.runtime.notifications import Kind, compose

    given = channels()
    if not given:
        raise errors.ConfigError(
            f"{NOTIFY} is not set: set it to one or several URLs of apprise, separated by blanks"
        )
    if late or watch:
        from srpo_core.cli.late_schedules import notify_late_schedules

        notify_late_schedules(repeat=watch)
        return
    message = compose(Kind.TEST, ["srpo notify"], "If you read this, this channel works.")
    faults = deliver(message, given) if test else check(given)
    for channel, fault in faults.items():
        mark = typer.style("✗", fg="red") if fault else typer.style("✓", fg="green")
        state = fault or ("took the test message" if test else "is known to apprise; try it with --test")
        typer.echo(f"{mark} {channel.name} {state}")
    if any(faults.values()):
        raise typer.Exit(errors.SrpoError.exit_code)


@app.command(rich_help_panel=PANEL)
def plan(  # noqa: PLR0913, PLR0917  # the options of the command
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs, one per worker.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.001, help="Memory of one GPU in GB (1e9 bytes).")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Preset to plan; default: params.yaml.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as for align.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of one GPU per hour; default: resources.price.")
    ] = None,
    mfu: Annotated[
        float,
        typer.Option(
            min=0.001, max=1, help="Model FLOPs utilization: share of peak FLOP/s that training reaches."
        ),
    ] = 0.4,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="Peak FLOP rate of one GPU in bfloat16, in TFLOP/s.")
    ] = 989.0,
    bandwidth: Annotated[
        float, typer.Option(min=0.001, help="Bandwidth from one GPU to the others of its node, in GB/s.")
    ] = 300.0,
    node_gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs of a node.")] = 8,
    node_bandwidth: Annotated[
        float,
        typer.Option(min=0.001, help="Bandwidth from a node to the others, in GB/s (100 Gbit/s: 12.5)."),
    ] = 400.0,
    disk: Annotated[
        float, typer.Option(min=0.001, help="Bandwidth to and from the disk with the weights, in GB/s.")
    ] = 2.0,
    upload: Annotated[
        float, typer.Option(min=0.001, help="Bandwidth to the store of releases, in GB/s.")
    ] = 0.1,
    presets: Annotated[
        bool, typer.Option("--presets", help="Plan every preset at full size on its hardware, in one table.")
    ] = False,
) -> None:
    """Estimate memory, FLOPs, time and price of a run from its settings. Needs no weights."""
    from rich.console import Console

    from srpo_core import config
    from srpo_core.plan import GB, TERA, Cluster, make_plan, plan_presets
    from srpo_core.plan.table import show, show_presets

    if presets:
        if gpus or gpu_memory or profile or change:
            raise errors.ConfigError(
                "--presets plans every preset on its own hardware: give neither --gpus, --gpu-memory, --profile nor --set"
            )
        Console().print(show_presets(plan_presets()))
        return
    if gpus is None or gpu_memory is None:
        raise errors.ConfigError("srpo plan needs --gpus and --gpu-memory, or --presets")
    path = config.profile_path(profile) if profile else config.PARAMS_FILE
    settings = config.parse_settings(
        config.patched(config.read_values(path), parse_changes(change or [])), str(path)
    )
    cluster = Cluster(
        gpus,
        gpu_memory * GB,
        settings.resources.price if price is None else price,
        mfu,
        tflops * TERA,
        bandwidth * GB,
        disk=disk * GB,
        upload=upload * GB,
        node_gpus=node_gpus,
        node_bandwidth=node_bandwidth * GB,
    )
    Console().print(show(make_plan(settings, cluster)))


@app.command(name="planned-hours", rich_help_panel=PANEL, hidden=True)
def planned_hours() -> None:
    """Print the planned hours of each stage of params.yaml as JSON; the check of resources.max_cost calls it."""
    import json

    from srpo_core import config
    from srpo_core.plan import budget

    typer.echo(json.dumps(budget.planned_hours(config.load_settings())))


@app.command(rich_help_panel=PANEL)
def fetch(
    profile: Annotated[
        str | None, typer.Option(help="Preset whose weights to download; default: params.yaml.")
    ] = None,
) -> None:
    """Download the weights that a run needs from the hub, at the revisions in models.lock, and verify each file."""
    from srpo_core import config
    from srpo_core.preflight.weight_files import weight_paths
    from srpo_core.weights.models_lock import fetch as fetch_entry
    from srpo_core.weights.models_lock import read_lock

    settings = config.load_settings(config.profile_path(profile) if profile else config.PARAMS_FILE)
    locked = read_lock()
    for path in weight_paths(settings):
        if path not in locked:
            typer.echo(f"{path}: not from a hub (models.lock has no such entry)")
            continue
        for line in fetch_entry(path):
            typer.echo(line)
