"""The secret of the Prefect servers that this project starts, and the settings with which they start.

Without a secret any program of the machine, and a page in a browser on it, can create a deployment and so run commands:
a browser sends simple requests to loopback from any page. With it the server answers 401.
"""

import os
import secrets
from pathlib import Path
from typing import Final

from srpo_core.errors import ConfigError
from srpo_core.runtime.prefect_api import AUTH_STRING, secret_file
from srpo_core.runtime.secret_file import write_once

USER: Final = "srpo"
# the page of a server at the default address, which is the only one that needs the API from a browser
ORIGIN: Final = "http://127.0.0.1:4200"

SERVER_SECRET: Final = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105  # the name of a variable
CLIENT_SECRET: Final = AUTH_STRING
ORIGINS: Final = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
# In the server's memory, as is Prefect's default, the slots of running runs are lost when the server starts again: its runs
# then end within five minutes, and a run that has died keeps its deployment's only slot for good.
SLOTS: Final = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
SLOTS_IN_FILES: Final = "prefect.server.concurrency.lease_storage.filesystem"
# seconds, the least that Prefect allows; flows/dead_runs.py waits for ten of them
HEARTBEATS: Final = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
HEARTBEAT_SECONDS: Final = "30"


def read_or_make_secret(home: Path) -> str:
    """Return the secret `srpo:<random>` of a home; it is made once, in a file that only this user can read.

    Raises:
        ConfigError: the file is damaged, or other users can read it.
    """
    path = secret_file(home)
    write_once(path, f"{USER}:{secrets.token_urlsafe(32)}\n")
    secret = path.read_text(encoding="utf-8", errors="replace").strip()
    if not secret.isascii() or not secret.startswith(f"{USER}:") or path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path} is damaged, or other users can read it: remove it, and start the server again"
        )
    return secret


def server_environment(home: Path, origin: str = ORIGIN) -> dict[str, str]:
    """Return the variables of a protected server and its clients; those that the user has set are kept.

    origin: of the server's own page, the only one that may use its API from a browser.
    """
    given = os.environ.get(SERVER_SECRET) or os.environ.get(CLIENT_SECRET)
    secret = given or read_or_make_secret(home)
    return {
        SERVER_SECRET: os.environ.get(SERVER_SECRET, secret),
        CLIENT_SECRET: os.environ.get(CLIENT_SECRET, secret),
        ORIGINS: os.environ.get(ORIGINS, origin),
        SLOTS: os.environ.get(SLOTS, SLOTS_IN_FILES),
        HEARTBEATS: os.environ.get(HEARTBEATS, HEARTBEAT_SECONDS),
    }
