"""What must stand in the environment before Prefect is imported, which reads it at import."""

import os
from pathlib import Path

from srpo_core.artifacts import home
from srpo_core.runtime.processes import OWNER, end_leftovers, owner_mark
from srpo_core.runtime.telemetry import quiet_environment


def prepare_environment() -> None:
    """Switch telemetry off and keep Prefect's database in the project's home; what the user set stays.

    Without `PREFECT_API_URL` a flow brings its own server on loopback for as long as it runs; one that a
    killed run left behind is ended here, and this process marks its own.
    """
    end_leftovers()
    os.environ[OWNER] = owner_mark()
    defaults = {
        **quiet_environment(),
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # the default of 20 s is too short for a busy laptop
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
