"""Fixtures for tests of the flows: a Prefect server and a small repository."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_server import Server, deploy
from standin import make_standin

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deployed(prefect_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Deploy the project's flows and pipelines.yaml from a stand-in; return the environment of a worker."""
    checkout = make_standin(tmp_path_factory.mktemp("deployed") / "standin")
    shutil.copytree(ROOT / "flows", checkout / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipelines.yaml", checkout)
    return deploy(prefect_server, checkout)


@pytest.fixture
def prefect(prefect_server: Server) -> Iterator[Server]:
    """Use the test server as the API of flows that a test calls directly."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    settings = {PREFECT_API_URL: prefect_server.url, PREFECT_API_AUTH_STRING: prefect_server.secret}
    with temporary_settings(settings):
        yield prefect_server


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new stand-in repository as the current directory; nothing is written outside it."""
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    path = make_standin(tmp_path / "standin")
    monkeypatch.chdir(path)
    return path
