"""From the form in Prefect's dashboard to the release in production, with a server, a worker and Chromium.

`SCREENSHOTS=docs pytest -m nightly tests/flows/test_approval_in_browser.py` also writes the images of docs/operations.md.
"""

import os
import shutil
import time
from pathlib import Path

import pytest
from chromium import needs_chromium
from prefect_server import deploy, running_worker
from prefect_ui import opened_dashboard
from standin import ROOT, keep_stages, make_standin
from standin_publishing import publish

from srpo_core.release.aliases import promote
from srpo_core.release.references import in_production, resolve
from srpo_core.release.summary import describe
from srpo_core.storage import open_store

pytestmark = [pytest.mark.nightly, pytest.mark.browser, needs_chromium]

WAIT = 600  # seconds, on a busy machine
STORE_URL = "https://releases.example.org/srpo"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A stand-in with the project's flows; tiny-1 is in production in its store."""
    checkout = make_standin(tmp_path / "standin")
    keep_stages(checkout, "gate", "report")
    shutil.copytree(ROOT / "flows", checkout / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipelines.yaml", checkout)
    package = checkout / "flows/__init__.py"
    tests = f"import sys\n\nsys.path.append({str(ROOT / 'tests')!r})\n"
    package.write_text(f"{package.read_text()}{tests}from standin_publishing import install\n\ninstall()\n")
    monkeypatch.setenv("SRPO_STORE", str(checkout / "store"))
    (checkout / "runs/gate").mkdir(parents=True)
    (checkout / "runs/gate/decision.json").write_text("{}")
    promote(open_store(), publish(open_store(), root=checkout, why="first", cost=None).version)
    shutil.rmtree(checkout / "runs")
    return open_store()


@pytest.fixture
def worker(store, prefect_server, tmp_path):
    """A worker that runs the flows of the stand-in."""
    environment = deploy(prefect_server, Path(store.uri).parent)
    environment |= {"SRPO_STORE": store.uri, "SRPO_STORE_URL": STORE_URL}
    with running_worker(environment, tmp_path / "worker.log"):
        yield tmp_path / "worker.log"


def save(dashboard, name, tmp_path):
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    dashboard.save(folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size < 300_000


def test_a_release_is_approved_in_the_form_of_its_run_and_is_then_in_production(
    store, worker, prefect_server, tmp_path
):
    with opened_dashboard(prefect_server, tmp_path / "chromium", height=1500) as dashboard:
        deployment = prefect_server.call("/deployments/name/align/align-with-approval")
        find = {"deployments": {"id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_DESC"}
        before = len(prefect_server.call("/flow_runs/filter", find))  # of other tests
        dashboard.open(f"deployments/deployment/{deployment['id']}")
        dashboard.press("Run")
        dashboard.press("Quick run")
        run = prefect_server.wait(
            "/flow_runs/filter",
            find,
            lambda runs: len(runs) > before and runs[0]["state_name"] == "Suspended",
            seconds=WAIT,
        )[0]
        assert (resolve(store, "candidate"), in_production(store, "tiny")) == ("tiny-2", "tiny-1")

        dashboard.open(f"runs/flow-run/{run['id']}")
        dashboard.press("Resume")
        dashboard.wait_for("tiny-2 would replace tiny-1")
        for shown in (
            "style_gained holds",
            "champion_style holds",
            "production: tiny-1, at its own gate.",
            "cost: ",
            "report: ",
        ):
            assert shown in dashboard.text()
        report = f"{STORE_URL}/models/tiny/versions/tiny-2/report.html"
        assert dashboard.tab.run(f"!!document.querySelector('a[href=\"{report}\"]')"), dashboard.text()
        drawn = dashboard.tab.wait(
            "document.querySelector('article img')?.complete && document.querySelector('article img').naturalWidth"
        )
        assert drawn > 300, "images before and after"
        dashboard.choose("Decision", "approve")
        dashboard.fill_in("Reason", "the style is there, and hands are right")
        dashboard.fill_in("Your name", "Ada")
        save(dashboard, "approval_form", tmp_path)
        dashboard.submit("Submit", "Resume Flow Run")
        dashboard.wait_for("Promoted", seconds=WAIT)
        dashboard.open(
            f"runs/flow-run/{run['id']}"
        )  # its header shows the state of the time when it was opened
        dashboard.wait_for("Promoted")
        dashboard.wait_for("gate: decides")  # the log
        time.sleep(2)  # the graph is no text to wait for
        save(dashboard, "approval_promoted", tmp_path)
    assert (in_production(store, "tiny"), resolve(store, "previous")) == ("tiny-2", "tiny-1")
    reason = f"approved: the style is there, and hands are right (run {run['name']})"
    assert any(line.endswith(f"by Ada: {reason}") for line in describe(store, "tiny-2"))
    log = worker.read_text()
    assert log.count("gate: decides") == 1, "the resumed run must not run a stage"
    assert "Traceback" not in log
