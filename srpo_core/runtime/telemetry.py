"""Telemetry is off unless the user turns it on: one list for every tool that would phone home."""

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
    """The variables that keep Prefect, DVC, Ray, Great Expectations and the hubs silent.

    A variable that `environment` (default: that of this process) sets already keeps its value, so a user
    may turn telemetry on. Apply before those libraries are imported:
    `os.environ.update(quiet_environment())`.
    """
    given = os.environ if environment is None else environment
    return {name: given.get(name, value) for name, value in _QUIET.items()}
