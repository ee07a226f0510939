"""The configuration of supervisord, and the environment of the services.

The file has neither a secret nor a path: supervisord runs in the directory of its files, and the services inherit its
environment. In its format a path with a percent sign, or a blank before `#` or `;`, would mean something else.
"""

import os
import sys
from collections.abc import Mapping
from configparser import RawConfigParser
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from srpo_core.credentials import NOTIFY
from srpo_core.runtime.prefect_api import API_URL
from srpo_core.runtime.proxies import direct_environment
from srpo_core.runtime.telemetry import quiet_environment
from srpo_core.services.running import NOTIFIER, SERVER, SOCKET, WORKER, directory_of

POOL: Final = "local-process"  # of pipelines.yaml
CHECKOUT: Final = "SRPO_CHECKOUT"
LOG: Final = "supervisor.log"
CONFIGURATION: Final = "supervisord.conf"
# A service is started again however often it ends: after the n-th end in a row within START_SECONDS, after n seconds.
START_SECONDS: Final = 5
_RETRIES: Final = 1_000_000
_COMPARED: Final = ("SRPO_", "PREFECT_", "AWS_", "RAY_", "HF_", "WANDB_", "CUDA_")
_COMMON: Final[Mapping[str, object]] = {
    "directory": f"%(ENV_{CHECKOUT})s",
    "autostart": "false",  # a worker needs a server with its pool
    "autorestart": "true",
    "startsecs": START_SECONDS,
    "startretries": _RETRIES,
    "stopwaitsecs": 20,
    "killasgroup": "true",
    "redirect_stderr": "true",
    "stdout_logfile": "%(program_name)s.log",
    "stdout_logfile_maxbytes": "10MB",
    "stdout_logfile_backups": 2,
}


def service_names(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the services in the order in which they start; the notifier only if somebody is to be notified."""
    return (SERVER, WORKER, NOTIFIER) if environment.get(NOTIFY, "").strip() else (SERVER, WORKER)


def write_configuration(home: Path, environment: Mapping[str, str]) -> Path:
    """Write the file of supervisord for the services of an environment, and return its path."""
    # by its name: the environment's PATH leads to it
    python, port = Path(sys.executable).name, urlsplit(environment[API_URL]).port
    commands = {
        SERVER: f"{python} -m prefect server start --host 127.0.0.1 --port {port}",
        WORKER: f"{python} -m prefect worker start --pool {POOL} --type process --name {worker_name()}",
        NOTIFIER: f"{python} -m srpo_core notify --watch",
    }
    parser = RawConfigParser()
    parser["supervisord"] = {
        "logfile": LOG,
        "logfile_maxbytes": "1MB",
        "logfile_backups": "1",
        "pidfile": "supervisor.pid",
        "childlogdir": ".",
        "nodaemon": "true",
        **({"user": "root"} if os.geteuid() == 0 else {}),  # without it supervisord warns
    }
    # supervisord makes its path absolute, and the path of a socket may have no more than 107 bytes
    parser["unix_http_server"] = {"file": f"/proc/self/cwd/{SOCKET}", "chmod": "0700"}
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    parser["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
    for priority, name in enumerate(service_names(environment)):
        options = {**_COMMON, "command": commands[name], "priority": priority}
        parser[f"program:{name}"] = {key: str(value) for key, value in options.items()}
    path = directory_of(home) / CONFIGURATION
    with path.open("w", encoding="utf-8") as file:
        parser.write(file)
    return path


def worker_name() -> str:
    """Return the name of the worker in Prefect's UI, the same after each start."""
    return "srpo"


def services_environment(
    given: Mapping[str, str], *, checkout: Path, home: Path, secrets: Mapping[str, str], address: str
) -> dict[str, str]:
    """Return the environment of the services.

    given: that of this process. secrets: the variables of the server's secret and of its origins. address: of its API.
    """
    environment = {
        **given,
        **quiet_environment(given),
        **secrets,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", os.defpath)]),
        "PREFECT_HOME": given.get("PREFECT_HOME") or str(home / "prefect"),
        "SRPO_HOME": str(home),
        API_URL: address,
        CHECKOUT: str(checkout),
    }
    return {**environment, **direct_environment(environment)}


def variables_that_differ(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of variables that differ between two environments of services.

    Compared are those that decide where and how runs work, such as SRPO_STORE, RAY_ADDRESS and credentials.
    """
    names = {name for name in {*then, *now} if name.startswith(_COMPARED)}
    return sorted(name for name in names if then.get(name) != now.get(name))
