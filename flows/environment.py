"""Set the environment variables that Prefect reads at import."""

import os
from pathlib import Path

from srpo_core.artifacts import home
from srpo_core.runtime.processes import OWNER, end_leftovers, owner_mark
from srpo_core.runtime.telemetry import quiet_environment


def prepare_environment() -> None:
    """Disable telemetry and put Prefect's database into the project's home; variables set by the user are kept.

    Without `PREFECT_API_URL` a flow starts its own server on loopback and ends it afterwards. Servers that killed
    runs left behind are ended here, and this process marks its own so that the next run can do the same.
    """
    end_leftovers()
    os.environ[OWNER] = owner_mark()
    defaults = {
        **quiet_environment(),
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # the default of 20 s is too short on a busy laptop
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
