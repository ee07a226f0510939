"""Turn off the telemetry of every tool, unless the user turned it on."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_QUIET: Final[Mapping[str, str]] = MappingProxyType(
    {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_STUDIO_OFFLINE": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ITERATIVE_DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)


def quiet_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that turn off the telemetry of Prefect, DVC, Ray, Great Expectations and the hubs.

    A variable that `environment` (default: `os.environ`) already sets keeps its value, so a user can turn telemetry on.
    Apply before those libraries are imported: `os.environ.update(quiet_environment())`.
    """
    given = os.environ if environment is None else environment
    return {name: given.get(name, value) for name, value in _QUIET.items()}
