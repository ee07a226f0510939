"""A stand-in for the repository: its settings, and a short dvc.yaml whose stages are a few lines each."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from srpo_core.runtime.telemetry import quiet_environment

ROOT = Path(__file__).resolve().parents[2]

DVC_YAML = """\
stages:
  ingest:
    desc: looks at the data
    cmd: python steps.py ingest
    deps: [steps.py, "${ingest.source}"]
    params: [seed, ingest]
    outs: [runs/ingest]
  train:
    desc: takes a while
    cmd: python steps.py train
    deps: [steps.py, runs/ingest]
    params: [train]
    outs: [runs/train]
  gate:
    desc: says yes or no
    cmd: python steps.py gate
    deps: [steps.py, runs/train]
    params: [gate]
    metrics: [runs/gate/decision.json]
  report:
    desc: one page
    cmd: python steps.py report
    deps: [runs/gate/decision.json]
    outs: [runs/report]
  quantize:
    desc: files of a release
    cmd: python steps.py quantize
    deps: [runs/gate/decision.json]
    outs: [runs/quantize]
    meta:
      needs: a passed decision
"""

STEPS = """\
import json, os, sys, time
from pathlib import Path
import yaml

settings = yaml.safe_load(Path("params.yaml").read_text())
stage = sys.argv[1]
out = Path("runs") / stage
out.mkdir(parents=True, exist_ok=True)
print(f"this is {stage}", flush=True)
if stage == "ingest":
    files = sorted(path.name for path in Path(settings["ingest"]["source"]).iterdir())
    (out / "numbers.json").write_text(json.dumps([settings["seed"], files]))
if stage == "train":
    size = settings["train"]["batch_size"]
    if size == 665:
        print("srpo: error: the loss is NaN at step 7", file=sys.stderr)
        sys.exit(4)
    if size == 1000:
        Path(os.environ["SRPO_HOME"], "pid").write_text(f"{os.getpid()}\\n")
        time.sleep(300)
    (out / "weights.txt").write_text(f"{size} images on {Path('runs/ingest/numbers.json').read_text()}")
if stage == "gate":
    passed = settings["gate"]["resamples"] > 2000
    decision = {"passed": passed, "verdict": "passed" if passed else "refused", "reason": "as the resamples say."}
    (out / "decision.json").write_text(json.dumps(decision))
if stage == "report":
    (out / "report.html").write_text("<p>" + Path("runs/gate/decision.json").read_text())
if stage == "quantize":
    (out / "model.bin").write_bytes(b"weights")
"""


def git(cwd: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.strip()


def make_standin(path: Path) -> Path:
    path.mkdir()
    shutil.copytree(ROOT / "profiles", path / "profiles")
    shutil.copytree(ROOT / "assets/tiny/hpd", path / "assets/tiny/hpd")
    shutil.copy(ROOT / "params.yaml", path)
    shutil.copy(ROOT / ".gitignore", path)
    shutil.copy(ROOT / ".dvcignore", path)
    (path / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, path / ".dvc")
    (path / "dvc.yaml").write_text(DVC_YAML)
    (path / "steps.py").write_text(STEPS)
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "stand-in")
    return path


class Server:
    """A Prefect server on loopback, by its REST interface."""

    def __init__(self, home: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **quiet_environment(),
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST when there is a body.

        The server says 503 while another writer holds its SQLite file, and has then written nothing: Prefect's own
        client asks again, and so does this.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > until:
                    raise
            time.sleep(1)

    def wait(self, path: str, body: dict[str, Any] | None, ready: Any, seconds: float) -> Any:
        """Call until `ready(answer)`; fail after `seconds`."""
        until = time.monotonic() + seconds
        answer: Any = None
        while time.monotonic() < until:
            try:
                answer = self.call(path, body)
            except OSError as error:
                answer = error
            else:
                if ready(answer):
                    return answer
            time.sleep(0.5)
        raise AssertionError(f"{path} after {seconds} s: {answer}")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of the flows."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(home, port)
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=server.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            server.wait("/health", None, lambda answer: answer is True, seconds=180)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def prefect(prefect_server: Server) -> Iterator[Server]:
    """The server, used by flows that a test calls directly."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        yield prefect_server


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh stand-in repository, which is the current directory; nothing is kept outside it."""
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    path = make_standin(tmp_path / "standin")
    monkeypatch.chdir(path)
    return path
