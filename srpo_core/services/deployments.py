"""Deploy the flows of a checkout to the server, if that has not been done yet."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from srpo_core.artifacts import write_json
from srpo_core.config.yaml_text import read_yaml
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime import file_lock
from srpo_core.runtime.prefect_api import ask_prefect_server
from srpo_core.runtime.processes import run_streaming
from srpo_core.services.configuration import POOL
from srpo_core.services.running import directory_of, last_line

PIPELINES: Final = "pipelines.yaml"
LOG: Final = "deploy.log"
_SECONDS: Final = 60.0  # for an answer of a server that is starting on a busy machine


def deploy(checkout: Path, home: Path, environment: Mapping[str, str]) -> tuple[int, bool]:
    """Create the work pool and deploy `pipelines.yaml`; return the number of deployments and whether anything was to do.

    Nothing is to do if the server has all of them and neither `pipelines.yaml` nor the code that makes their forms has
    changed: a schedule that was paused in the UI stays paused. Only one process deploys at a time.

    Raises:
        ConfigError: the checkout has no `pipelines.yaml`, or it cannot be read.
        SrpoError: Prefect refuses it; the message has its last line.
    """
    names = deployment_names(checkout)
    noted, digest = directory_of(home) / "deployed.json", _digest(checkout)
    with file_lock.acquire(directory_of(home) / "deploying"):
        if (
            noted.is_file()
            and digest in noted.read_text(encoding="utf-8")
            and not _missing(names, environment)
        ):
            return len(names), False
        log = directory_of(home) / LOG
        log.unlink(missing_ok=True)
        if not _has_pool(environment):
            _prefect(["work-pool", "create", POOL, "--type", "process"], checkout, environment, log)
        _prefect(["--no-prompt", "deploy", "--prefect-file", PIPELINES, "--all"], checkout, environment, log)
        if missing := _missing(names, environment):
            raise SrpoError(f"the server lacks {', '.join(missing)} after a deployment: read {log}")
        write_json(noted, {"digest": digest})
    return len(names), True


def deployment_names(checkout: Path) -> list[str]:
    """Return the names of the deployments of `pipelines.yaml`. Raises `ConfigError` if it has none or cannot be read."""
    path = checkout / PIPELINES
    try:
        return [str(one["name"]) for one in read_yaml(path)["deployments"]]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: run this in the checkout of the project") from None
    except (KeyError, TypeError):
        raise ConfigError(
            f"{path} has no list 'deployments' in which each one has a name: restore it with 'git checkout {PIPELINES}'"
        ) from None


def _digest(checkout: Path) -> str:
    """Return the SHA-256 of everything that makes the deployments and their forms."""
    digest = hashlib.sha256(str(checkout).encode())
    for path in sorted(_sources(checkout)):
        digest.update(f"{path.relative_to(checkout)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _sources(checkout: Path) -> Iterator[Path]:
    yield checkout / PIPELINES
    for pattern in ("flows/**/*.py", "srpo_core/**/*.py", "profiles/*.yaml", "requirements.lock"):
        yield from checkout.glob(pattern)


def _missing(names: list[str], environment: Mapping[str, str]) -> list[str]:
    query = {"deployments": {"name": {"any_": names}}, "limit": 200}
    answer = ask_prefect_server("/deployments/filter", query, environment, _SECONDS)
    there = {one["name"] for one in answer}
    return [name for name in names if name not in there]


def _has_pool(environment: Mapping[str, str]) -> bool:
    query = {"work_pools": {"name": {"any_": [POOL]}}}
    return bool(ask_prefect_server("/work_pools/filter", query, environment, _SECONDS))


def _prefect(arguments: list[str], checkout: Path, environment: Mapping[str, str], log: Path) -> None:
    """Run Prefect's command, with its output added to the log; nothing of it outlives this process."""
    with log.open("a", encoding="utf-8") as file:
        code = run_streaming(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=checkout,
            environment=environment,
            on_line=lambda line: print(line, file=file),
        )
    if code != 0:
        raise SrpoError(f"'prefect {' '.join(arguments)}' failed: {last_line(log)}; read {log}")
