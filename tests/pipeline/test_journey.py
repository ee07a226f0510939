"""docs/operations.md, from `make up` to a release in production: the real pipeline, in a fresh clone and in the browser.

`pytest -m nightly -s tests/pipeline/test_journey.py` prints how long each step took.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium import needs_chromium
from prefect_server import Server
from prefect_ui import opened_dashboard

ROOT = Path(__file__).resolve().parents[2]
WAIT = 3600  # seconds, on a busy machine

pytestmark = [pytest.mark.nightly, pytest.mark.browser, needs_chromium]


@pytest.fixture
def clone(tmp_path):
    """A clone of the checkout's last commit. Its services are ended after the test, however it ends."""
    path = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(path)], check=True)
    yield path
    srpo(path, "down")


@pytest.fixture
def watch():
    """A function that prints how long it is since the test began."""
    started = time.monotonic()

    def note(what):
        minutes, seconds = divmod(round(time.monotonic() - started), 60)
        print(f"{minutes:2d} min {seconds:02d} s  {what}", flush=True)

    return note


def srpo(checkout, *arguments):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SRPO_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "srpo_core", *arguments],
        cwd=checkout,
        env={**environment, "PYTHONPATH": str(checkout), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_new_user_gets_from_make_up_to_an_approved_release_in_the_browser(clone, tmp_path, watch):
    port = free_port()
    done = srpo(clone, "up", "--port", str(port))  # as `make up`, which may not find its port free here
    assert done.returncode == 0, done.stdout + done.stderr
    watch("the services run")
    server = Server(clone / ".srpo", port)
    with opened_dashboard(server, tmp_path / "chromium", height=1500) as dashboard:
        deployment = server.call("/deployments/name/align/align-with-approval")
        find = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        dashboard.open(f"deployments/deployment/{deployment['id']}")
        dashboard.press("Run")
        dashboard.press("Quick run")
        watch("the run is started")
        ended = {"Suspended", "Failed", "Crashed", "Refused"}
        (run,) = server.wait(
            "/flow_runs/filter", find, lambda runs: runs and runs[0]["state_name"] in ended, seconds=WAIT
        )
        assert run["state_name"] == "Suspended", run["state"]["message"]
        watch("the release is published, and the run waits")
        dashboard.open(f"runs/flow-run/{run['id']}")
        dashboard.press("Resume")
        dashboard.wait_for("no release is in production")
        dashboard.choose("Decision", "approve")
        dashboard.fill_in("Reason", "more ink, and all subjects are there")
        dashboard.fill_in("Your name", "Ada")
        dashboard.save(tmp_path / "form.png")
        dashboard.submit("Submit", "Resume Flow Run")
        server.wait(
            f"/flow_runs/{run['id']}", None, lambda run: run["state_type"] in {"COMPLETED", "FAILED"}, WAIT
        )
        dashboard.open(f"runs/flow-run/{run['id']}")
        dashboard.wait_for("Promoted")
        dashboard.save(tmp_path / "promoted.png")
    watch("the release is in production")
    released = srpo(clone, "releases")
    assert released.returncode == 0, released.stderr
    assert "production" in released.stdout
    assert srpo(clone, "down").returncode == 0
    watch("the services are ended")
