"""A run that waits for a person's decision, and what becomes of it; the form is submitted over HTTP, as the UI does."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from small_release import publish_small
from standin import keep_stages

from flows.align import align
from flows.approval import CLOSING, close_approval
from srpo_core.errors import ConfigError, StoreError
from srpo_core.release import aliases, publishing
from srpo_core.release.references import in_production, resolve
from srpo_core.storage import open_store
from srpo_core.workspace.run_comparison import Presets
from srpo_core.workspace.run_list import list_runs
from srpo_core.workspace.run_record import read_records

pytestmark = pytest.mark.pipeline

GOOD = {"decision": "approve", "reason": "hands are right", "name": "Ada"}
AT_ONCE = 1e-9  # hours


class Runs:
    """Runs of the flow align by a deployment, each executed in this process as a worker does in one of its own."""

    def __init__(self, server):
        self.server = server
        self.deployment = self.deploy("align", f"align-{uuid4().hex}")
        self.deploy(*CLOSING.split("/"))

    def deploy(self, flow, name):
        flow_id = self.server.call("/flows/", {"name": flow})["id"]
        limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "ENQUEUE"}}
        return self.server.call("/deployments/", {"name": name, "flow_id": flow_id, **limit})["id"]

    def start(self, **parameters):
        given = {"publish": True, "require_approval": True, **parameters}
        run = self.server.call(f"/deployments/{self.deployment}/create_flow_run", {"parameters": given})
        return self.execute(run["id"])

    def execute(self, run_id):
        pending = {"state": {"type": "PENDING", "name": "Pending"}}
        assert self.server.call(f"/flow_runs/{run_id}/set_state", pending)["status"] == "ACCEPT"
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(run_id))
        try:
            run_flow(align, flow_run=run, parameters=dict(run.parameters), return_type="state")
        except Pause:
            assert self.read(run_id)["state_type"] == "PAUSED"
        return run_id

    def read(self, run_id):
        return self.server.call(f"/flow_runs/{run_id}")

    def submit(self, run_id, **values):
        return self.server.call(f"/flow_runs/{run_id}/resume", {"run_input": GOOD | values})["status"]

    def state(self, run_id):
        run = self.read(run_id)
        return run["state_name"], run["state"]["message"]

    def slots(self):
        return self.server.call(f"/deployments/{self.deployment}")["global_concurrency_limit"]["active_slots"]


@pytest.fixture
def store(standin, tmp_path, monkeypatch):
    """A store with tiny-1 in production. What the stand-in publishes to it are the small versions tiny-2, tiny-3 and so on."""
    keep_stages(standin, "gate", "report")
    monkeypatch.setenv("SRPO_STORE", str(standin / "store"))
    store = open_store()
    aliases.promote(store, publish_small(store, tmp_path, 1))

    def publish(given, *, root, why, cost):
        assert (root / "runs/gate/decision.json").is_file()
        number = len(given.versions()) + 1
        version = publish_small(given, tmp_path, number, more={"report.html": b"<p>"})
        before = aliases.move_alias(given, "tiny/candidate", version, why=why)
        return publishing.Published(version, f"{given.uri}/{version}", True, "tiny/candidate", before)

    monkeypatch.setattr(publishing, "publish", publish)
    return store


@pytest.fixture
def runs(store, prefect):
    return Runs(prefect)


def newest_record():
    return read_records(Path(".srpo"))[0]


def test_an_approved_release_is_production_and_the_resumed_run_repeats_no_work(
    runs, store, prefect, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    run = runs.start()
    assert runs.state(run)[0] == "Suspended"
    assert runs.slots() == 0, "a run that waits must not hold back the next one"
    record = newest_record()
    assert (record.state, record.flow_run, record.version) == ("awaiting approval", run, "tiny-2")
    text = prefect.call(f"/flow_runs/{run}/input/suspended-approval-description")
    assert "\n## tiny-2 would replace tiny-1\n" in text
    assert "\n**passed**: every rule holds.\n" in text
    found = prefect.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    (page,) = [one for one in found if one["key"] == "approval"]
    address = f"{prefect.url.removesuffix('/api')}/artifacts/artifact/{page['id']}"
    assert text == f"[The same on a page of its own]({address})\n\n{page['data']}"
    title = "SRPO awaiting approval: tiny, tiny-2"
    assert title in receiver.titles(2)
    cause, form, report = receiver.body(title)
    assert report.startswith(f"report: {store.uri}/models/tiny/versions/tiny-2/report.html on ")
    assert cause.startswith(
        "tiny-2 would be promoted, instead of tiny-1; as the resamples say.; decide until "
    )
    assert form == f"form: {prefect.url.removesuffix('/api')}/runs/flow-run/{run}"

    for bad in ({"reason": " "}, {"name": ""}, {"name": "A" * 101}, {"decision": "maybe"}):
        assert runs.submit(run, **bad) == "REJECT"
    assert in_production(store, "tiny") == "tiny-1"
    before = len(prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}))
    assert runs.submit(run) == "ACCEPT"
    runs.execute(run)
    name = runs.read(run)["name"]
    assert runs.state(run) == ("Promoted", f"tiny-2 approved by Ada: hands are right (run {name})")
    assert (in_production(store, "tiny"), resolve(store, "previous")) == ("tiny-2", "tiny-1")
    step = store.alias("tiny/production")[0]["history"][-1]
    assert (step["who"], step["why"]) == ("Ada", f"approved: hands are right (run {name})")
    assert store.versions() == ["tiny-1", "tiny-2"]
    assert len(list(Path(".srpo/runs").glob("2*"))) == 1
    assert len(prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})) == before
    assert (newest_record().run_id, newest_record().state) == (record.run_id, "promoted")
    assert newest_record().approval == f"approved by Ada: hands are right (run {name})"
    planned = {"flow_runs": {"name": {"any_": [f"close-{name}"]}}}
    assert prefect.call("/flow_runs/filter", planned) == []
    promoted = "SRPO promoted: tiny, tiny-2"
    assert promoted in receiver.titles(3)
    assert receiver.body(promoted)[0].startswith("tiny/production: tiny-1 → tiny-2, by Ada: hands are right")

    retried = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    prefect.call(f"/flow_runs/{run}/set_state", retried)
    runs.execute(run)
    assert runs.state(run)[0] == "Promoted"
    assert len(store.alias("tiny/production")[0]["history"]) == 2


def test_a_rejected_release_stays_the_candidate_and_its_history_has_the_reason(runs, store):
    run = runs.start()
    assert runs.submit(run, decision="reject", reason="hands look wrong") == "ACCEPT"
    runs.execute(run)
    assert runs.state(run)[0] == "Rejected"
    assert (in_production(store, "tiny"), resolve(store, "candidate")) == ("tiny-1", "tiny-2")
    step = store.alias("tiny/candidate")[0]["history"][-1]
    assert (step["who"], step["rejected"]) == ("Ada", "tiny-2")
    assert step["why"].startswith("rejected: hands look wrong (run ")
    assert newest_record().state == "rejected"


def test_a_decision_is_refused_if_candidate_or_production_have_changed_meanwhile(runs, store, tmp_path):
    first = runs.start()
    second = runs.start()
    third = runs.start()
    assert runs.submit(first) == "ACCEPT"
    runs.execute(first)
    name, message = runs.state(first)
    assert name == "Failed"
    assert "tiny-2 is not the candidate of tiny any more, tiny-4 is: nothing was promoted" in message
    assert in_production(store, "tiny") == "tiny-1"
    aliases.promote(store, "tiny-3")
    assert runs.submit(third) == "ACCEPT"
    runs.execute(third)
    assert "tiny-4 was compared with tiny-1, and tiny-3 is in production since then" in runs.state(third)[1]
    assert in_production(store, "tiny") == "tiny-3"
    states = {record.flow_run: record.state for record in read_records(Path(".srpo"))}
    assert states == {first: "failed", second: "awaiting approval", third: "failed"}
    cancelled = [{"id": second, "name": "x", "state_name": "Cancelled"}]
    listed = list_runs(read_records(Path(".srpo")), Presets(Path.cwd()), cancelled)
    assert {run.flow_run: run.state for run in listed}[second] == "cancelled"


def test_a_run_that_nobody_decides_about_in_time_ends_as_undecided_and_changes_nothing(
    runs, store, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    run = runs.start(approval_hours=AT_ONCE)
    assert close_approval(UUID(run)) is None
    state, message = runs.state(run)
    assert state == "Undecided"
    assert message.startswith("nobody has decided until 20")
    assert message.endswith(" UTC: tiny-2 stays the candidate")
    assert newest_record().state == "undecided"
    assert "SRPO approval expired: tiny, tiny-2" in receiver.titles(3)
    assert runs.server.call(f"/flow_runs/{run}/resume", {"run_input": GOOD})["status"] == "ABORT"

    late = runs.start(approval_hours=AT_ONCE)
    assert runs.submit(late) == "ACCEPT"
    runs.execute(late)
    assert runs.state(late)[0] == "Undecided"
    close_approval(UUID(late))
    assert runs.state(late)[0] == "Undecided"
    assert (in_production(store, "tiny"), resolve(store, "candidate")) == ("tiny-1", "tiny-3")

    early = runs.start()
    with pytest.raises(ConfigError, match=r"waits until 20\S+ \S+ UTC: cancel it to end it before"):
        close_approval(UUID(early))
    assert runs.state(early)[0] == "Suspended"
    with pytest.raises(ConfigError, match="has not asked for approval"):
        close_approval(uuid4())


def test_a_retry_waits_until_the_time_that_the_attempt_before_it_has_planned(runs, store, monkeypatch):
    with monkeypatch.context() as broken:

        def fails(*_, **__):
            raise StoreError("the store is gone")

        broken.setattr("flows.approval.compare_with_champion", fails)
        run = runs.start(approval_hours=5)
    assert runs.state(run)[0] == "Failed"
    (planned,) = closing_runs(runs, run)
    retried = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    runs.server.call(f"/flow_runs/{run}/set_state", retried)
    runs.execute(run)
    assert runs.state(run)[0] == "Suspended"
    assert closing_runs(runs, run) == [planned], "there is one end, that of the first attempt"
    request = runs.server.call(f"/flow_runs/{run}/input/approval-request")
    until = datetime.fromisoformat(
        json.loads(request)["until"] if isinstance(request, str) else request["until"]
    )
    ends = datetime.fromisoformat(planned["state"]["state_details"]["scheduled_time"])
    assert until < ends <= until + timedelta(minutes=1)


def closing_runs(runs, run):
    planned = {"flow_runs": {"name": {"any_": [f"close-{runs.read(run)['name']}"]}}}
    return runs.server.call("/flow_runs/filter", planned)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"publish": False}, "require_approval needs publish"),
        ({"approval_hours": 0}, "approval_hours is 0"),
        ({}, "require_approval needs a run of a deployment"),
    ],
)
def test_a_run_that_cannot_wait_is_refused_before_its_first_stage(store, prefect, parameters, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        align(require_approval=True, **parameters)
    assert not list(Path().glob(".srpo/runs/2*"))


def test_a_version_that_is_in_production_already_needs_no_decision(runs, store, monkeypatch):
    published = publishing.Published("tiny-1", f"{store.uri}/tiny-1", False, "tiny/candidate", None)
    monkeypatch.setattr(publishing, "publish", lambda *_, **__: published)
    run = runs.start()
    assert runs.state(run) == ("Completed", "passed: as the resamples say.")
    assert newest_record().state == "completed"


def test_a_run_without_the_deployment_that_ends_its_wait_is_refused(runs, store, monkeypatch):
    monkeypatch.setattr("flows.approval.CLOSING", "close-approval/missing")
    run = runs.start()
    state, message = runs.state(run)
    assert state == "Failed"
    assert "require_approval needs the deployment close-approval/missing, which ends the wait" in message
    assert not list(Path().glob(".srpo/runs/2*"))
