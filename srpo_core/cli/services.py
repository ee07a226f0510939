"""Commands that start and stop the services: Prefect's server, a worker, messages about late schedules."""

import os
import shlex
import time
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from srpo_core import artifacts, errors
from srpo_core.cli.app import app
from srpo_core.cli.output import shortest
from srpo_core.cli.run import require_own_code
from srpo_core.runtime.prefect_api import API_URL, is_on_this_machine

PANEL: Final = "Services"
PORT: Final = 4200


@app.command(rich_help_panel=PANEL)
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the server on loopback; default: 4200.")
    ] = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait until each service is ready.")] = 300.0,
    status: Annotated[
        bool, typer.Option("--status", help="Only say what runs. Exit code 1 if something does not.")
    ] = False,
) -> None:
    """Start Prefect's server and a worker, deploy the flows, and print the address of the UI.

    They go on when this command ends, and are started again when they end. Safe to repeat. 'srpo down' ends them.
    """
    if status:
        _show_status()
        return
    from srpo_core.services import deployments, starting
    from srpo_core.services.configuration import service_names
    from srpo_core.services.running import SERVER, WORKER
    from srpo_core.services.unfinished_runs import correct_lost_runs
    from srpo_core.workspace.checkout import require_checkout

    require_own_code(Path.cwd())
    checkout, home = require_checkout(Path.cwd()), artifacts.home()
    deployments.deployment_names(checkout)
    environment = _environment(checkout, home, port)
    started = starting.start_supervisor(home, environment)
    changed = False
    try:
        starting.wait_for_supervisor(home, time.monotonic() + wait)
        for name in service_names(environment):
            if name == WORKER and not starting.is_started(home, WORKER):
                for run in correct_lost_runs(environment):
                    typer.echo(f"run {run} has no process any more and is set to Crashed: a retry resumes")
            changed |= _start(home, environment, name, wait)
            if name == SERVER:
                count, deployed = deployments.deploy(checkout, home, environment)
                _report("flows", f"{count} deployments" + ("" if deployed else ", unchanged"))
                changed |= deployed
    except BaseException:
        if started:  # nothing runs on that nobody has seen ready
            from srpo_core.services.stopping import stop

            stop(home)
        raise
    _show_address(home, environment, changed=changed)


@app.command(rich_help_panel=PANEL)
def down() -> None:
    """End the services and every run that they have started. Safe to repeat."""
    from srpo_core.services.stopping import stop

    names = stop(artifacts.home())
    for name in names or ():
        typer.echo(f"run {name} was ended: start it again, and it resumes")
    typer.echo("no services ran" if names is None else "the services are ended")


@app.command(name="server-environment", rich_help_panel=PANEL)
def server_environment() -> None:
    """Print the variables of a Prefect server with a secret and of its clients: eval "$(srpo server-environment)".

    If the services run, the address is theirs. Behind a proxy these are also the exceptions for this machine.
    """
    from flows.server_secret import ORIGIN
    from flows.server_secret import server_environment as variables
    from srpo_core.runtime.proxies import direct_environment
    from srpo_core.services.running import running_address

    home = artifacts.home()
    printed = {
        API_URL: running_address(home) or f"{ORIGIN}/api",
        **variables(home),
        **direct_environment(os.environ),
    }
    for name, value in printed.items():
        typer.echo(f"export {name}={shlex.quote(os.environ.get(name, value))}")


def _environment(checkout: Path, home: Path, port: int | None) -> dict[str, str]:
    """Return the environment of services that run or are about to be started.

    Raises:
        ConfigError: they run at another port, or PREFECT_API_URL names a server of another machine.
    """
    from flows.server_secret import server_environment as secrets
    from srpo_core.services.configuration import CHECKOUT, services_environment
    from srpo_core.services.running import find_guardian, running_address, started_environment

    running, given = running_address(home), os.environ.get(API_URL, "").strip()
    if running and port is not None and urlsplit(running).port != port:
        raise errors.ConfigError(
            f"the services run at {running}: run 'srpo down' first, or leave out --port {port}"
        )
    if given and not is_on_this_machine(given):
        raise errors.ConfigError(
            f"{API_URL} names the server of another machine: unset it, or start only a worker for that server with "
            "'prefect worker start --pool local-process'"
        )
    if (guardian := find_guardian(home)) and (there := started_environment(guardian)[CHECKOUT]) != str(
        checkout
    ):
        raise errors.ConfigError(
            f"the services of {home} were started in {there}: run 'srpo down' first, or set SRPO_HOME to a directory of "
            "this checkout"
        )
    origin = f"http://127.0.0.1:{port or urlsplit(running or given).port or PORT}"
    return services_environment(
        os.environ,
        checkout=checkout,
        home=home,
        secrets=secrets(home, origin),
        address=f"{origin}/api",
    )


def _start(home: Path, environment: dict[str, str], name: str, wait: float) -> bool:
    """Start a service, wait until it is ready and print it; return whether it was started."""
    from srpo_core.services import starting
    from srpo_core.services.running import SERVER, WORKER

    ready = {SERVER: starting.answers(environment), WORKER: starting.has_reported(environment)}
    started = starting.start_service(home, name)
    if started:
        typer.echo(f"{name} is starting ...", err=True)
    service = starting.wait_for(home, name, ready.get(name, lambda _: True), time.monotonic() + wait)
    _report(
        name, f"process {service.pid}, log {shortest(service.log)}" + ("" if started else ", runs already")
    )
    return started


def _show_address(home: Path, environment: dict[str, str], *, changed: bool) -> None:
    """Print where the UI is, and what is needed to use it."""
    from srpo_core.runtime.prefect_api import secret_file
    from srpo_core.services.configuration import variables_that_differ
    from srpo_core.services.running import find_guardian, running_address, started_environment

    address, guardian = running_address(home), find_guardian(home)
    if address is None or guardian is None:
        raise errors.SrpoError("the services have been ended meanwhile: run 'srpo up' again")
    if not changed:
        typer.echo("nothing was to do: all services run")
    if names := variables_that_differ(started_environment(guardian), environment):
        _report(
            "variables",
            f"{', '.join(names)} had other values when the services were started; 'srpo down' and 'srpo up' give them the present ones",
        )
    _report("ui", typer.style(address.removesuffix("/api"), bold=True))
    _report("secret", f"cat {shortest(secret_file(home))} (the UI asks for it once)")
    _report("terminal", 'eval "$(srpo server-environment)" gives its address to prefect; srpo finds it')


def _show_status() -> None:
    """Print each service and its state. Exit code 1 if one does not run or the server does not answer."""
    from srpo_core.services.status import examine

    good = True
    for finding in examine(artifacts.home()):
        mark = typer.style("✓", fg="green") if finding.good else typer.style("✗", fg="red")
        typer.echo(f"{mark} {finding.name:<10}{finding.detail}")
        good &= finding.good
    if not good:
        raise typer.Exit(errors.SrpoError.exit_code)


def _report(name: str, text: str) -> None:
    typer.echo(f"{name:<11}{text}")
