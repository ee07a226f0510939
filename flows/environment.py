"""Set the environment variables that Prefect reads at import."""

import os
from pathlib import Path
from typing import Final

from flows.server_secret import (
    CLIENT_SECRET,
    HEARTBEAT_SECONDS,
    HEARTBEATS,
    SERVER_SECRET,
    server_environment,
)
from srpo_core.artifacts import home
from srpo_core.runtime.machine import adapt_to_machine
from srpo_core.runtime.prefect_api import API_KEY, API_URL, is_on_this_machine
from srpo_core.runtime.processes import (
    OWNER,
    end_children_after_this_process,
    end_leftovers,
    owner_mark,
)
from srpo_core.runtime.telemetry import quiet_environment
from srpo_core.services.running import with_running_services

# a line break at the end, as a mounted file often has, would stop Prefect's client
_STRIPPED: Final = (API_URL, API_KEY, CLIENT_SECRET, SERVER_SECRET)


def prepare_environment() -> None:
    """Disable telemetry and put Prefect's database into the project's home; variables set by the user are kept.

    Without `PREFECT_API_URL` a flow uses the server of `srpo up` if it runs. Otherwise it starts its own server on
    loopback, with a secret, and ends it afterwards; if this process is killed, a watcher ends the server. With
    `PREFECT_API_URL` the server's secret is in `PREFECT_API_AUTH_STRING`; for a server on this machine it is by default
    the one in the project's home.
    """
    adapt_to_machine()
    for name in _STRIPPED:
        if name in os.environ:
            os.environ[name] = os.environ[name].strip()
    if not os.environ.get(API_URL, "x"):  # Prefect would take an empty value for an address
        del os.environ[API_URL]
    os.environ.update(with_running_services(os.environ, home()))
    end_leftovers()
    os.environ[OWNER] = owner_mark()
    if API_URL not in os.environ:
        end_children_after_this_process()
    defaults = {
        **quiet_environment(),
        **_secret_variables(),
        HEARTBEATS: HEARTBEAT_SECONDS,
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # the default of 20 s is too short on a busy laptop
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def _secret_variables() -> dict[str, str]:
    """Return the settings of our own server, or the client's secret for a server on this machine; else nothing."""
    address = os.environ.get(API_URL)
    if address is None:
        return server_environment(home())
    if is_on_this_machine(address):
        return {CLIENT_SECRET: server_environment(home())[CLIENT_SECRET]}
    return {}
