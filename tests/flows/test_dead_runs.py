"""A run that died is found by its record; one that lives, or was started again, is left alone."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from flows.align import align
from flows.dead_runs import DIED, end_shown_tasks, find_dead_runs
from srpo_core.runtime.file_lock import acquire
from srpo_core.workspace.run_record import RunRecord, write_record

pytestmark = pytest.mark.pipeline


@pytest.fixture
def shown(prefect, tmp_path, monkeypatch):
    """A function that makes a run with a task, both shown as running, and returns the run's id."""
    monkeypatch.setenv("SRPO_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", prefect.url)
    monkeypatch.delenv("SRPO_NOTIFY", raising=False)
    flow = prefect.call("/flows/", {"name": f"align-{uuid4()}"})["id"]
    running = {"type": "RUNNING", "name": "Running"}

    def make():
        run = prefect.call("/flow_runs/", {"flow_id": flow, "state": running})["id"]
        task = {"flow_run_id": run, "task_key": "train", "dynamic_key": "0", "state": running}
        prefect.call("/task_runs/", task)
        return run

    make.flow = flow
    return make


def record(home, run, number, *, started, state="running"):
    name = f"20260101-00000{number}-000000"
    write_record(
        home,
        RunRecord(run_id=name, state=state, started=started, commit="0" * 40, changed=False, flow_run=run),
    )
    return name


def states(prefect, run):
    tasks = prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return prefect.call(f"/flow_runs/{run}")["state_type"], *(task["state_type"] for task in tasks)


def start(shown, own=None):
    """Call the hook as a run does that starts."""
    flow_run = FlowRun(id=UUID(own or str(uuid4())), name="new", flow_id=UUID(shown.flow))
    find_dead_runs(align, flow_run, None)


def test_a_killed_run_and_its_tasks_are_shown_as_crashed_and_a_retried_one_is_left_alone(
    shown, prefect, tmp_path
):
    dead, retried, own, live = (shown() for _ in range(4))
    soon, before = datetime.now(UTC) + timedelta(seconds=60), datetime.now(UTC) - timedelta(seconds=60)
    record(tmp_path, dead, 1, started=soon)
    record(tmp_path, retried, 2, started=before)  # it is shown as running since the retry
    record(tmp_path, own, 3, started=soon)
    record(tmp_path, live, 4, started=soon)
    again = record(tmp_path, live, 5, started=soon)
    with acquire(tmp_path / "runs" / again / "lock"):
        start(shown, own)
        start(shown, own)
    assert states(prefect, dead) == ("CRASHED", "CRASHED")
    assert prefect.call(f"/flow_runs/{dead}")["state"]["message"] == DIED
    for run in (retried, own, live):
        assert states(prefect, run) == ("RUNNING", "RUNNING")
    automations = prefect.call("/automations/filter", {})
    (made,) = [
        one for one in automations if one["name"] == "srpo: runs of align without heartbeat have crashed"
    ]
    assert made["enabled"]
    assert made["trigger"]["posture"] == "Proactive"


def test_the_tasks_of_a_run_whose_crash_is_reported_are_shown_as_crashed(shown, prefect):
    run = shown()
    end_shown_tasks(align, FlowRun(id=UUID(run), flow_id=UUID(shown.flow)), None)
    assert states(prefect, run) == ("RUNNING", "CRASHED")


def test_a_server_that_does_not_answer_is_a_warning_of_the_run(shown, monkeypatch, caplog):
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        start(shown)
    assert "the server cannot be asked for runs that died" in caplog.text


def test_a_run_that_died_while_it_was_cancelled_is_shown_as_cancelled(shown, prefect, tmp_path):
    run = shown()
    record(tmp_path, run, 1, started=datetime.now(UTC) - timedelta(seconds=60))
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    prefect.call(f"/flow_runs/{run}/set_state", cancelling)
    start(shown)
    assert states(prefect, run)[0] == "CANCELLED"
