import json
import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from srpo_core.runtime.channels import channels, deliver
from srpo_core.runtime.late_runs import notify_late

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.pipeline


def test_every_flow_is_deployed_with_a_form_for_the_settings(deployed, prefect_server):
    entries = yaml.safe_load((ROOT / "pipelines.yaml").read_text())["deployments"]
    named = {entry["entrypoint"] for entry in entries}
    flows = {
        f"flows/{path.name}:{name}"
        for path in (ROOT / "flows").glob("*.py")
        for name in re.findall(r"^@flow\(.*?\)\ndef (\w+)", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    }
    assert named == flows
    align = prefect_server.call("/deployments/name/align/align")
    schema = align["parameter_openapi_schema"]
    approval = {"require_approval", "approval_hours"}
    assert set(schema["properties"]) == {"profile", "patch", "revision", "publish", *approval}
    waiting = prefect_server.call("/deployments/name/align/align-with-approval")
    assert waiting["parameters"]["require_approval"] is True
    assert "require_approval" not in align["parameters"]
    presets = [path.stem for path in sorted((ROOT / "profiles").glob("*.yaml"))]
    assert schema["properties"]["profile"]["anyOf"] == [
        {"type": "string", "enum": presets},
        {"type": "null"},
    ]
    assert align["concurrency_limit"] == 1 or align["global_concurrency_limit"]["limit"] == 1
    assert align["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert align["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]["directory"].endswith(
        deployed["SRPO_CHECKOUT"].rsplit("/", 1)[1]
    )


def test_the_cron_schedule_creates_scheduled_runs(deployed, prefect_server):
    align = prefect_server.call("/deployments/name/align/align")
    runs = prefect_server.wait(
        "/flow_runs/filter",
        {"deployments": {"id": {"any_": [align["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"},
        lambda runs: len(runs) >= 3,
        seconds=90,
    )
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    assert all("T02:00:00" in run["expected_start_time"] for run in runs)
    assert {run["parameters"]["publish"] for run in runs} == {False}


@pytest.mark.parametrize("parameters", [{"patch": {"sead": 3}}, {"profile": "tyni"}], ids=str)
def test_a_run_with_an_unknown_setting_or_preset_is_rejected_before_it_is_created(
    deployed, prefect_server, parameters
):
    align = prefect_server.call("/deployments/name/align/align")
    with pytest.raises(OSError, match=r"40\d|42\d"):
        prefect_server.call(f"/deployments/{align['id']}/create_flow_run", {"parameters": parameters})


def test_a_run_that_no_worker_has_started_in_time_is_notified_once(
    deployed, prefect_server, receiver, monkeypatch, tmp_path
):
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, prefect_server.environment[name])
    verify = prefect_server.call("/deployments/name/verify/verify")
    runs = []
    for name, minute in (("first", 3), ("second", 4)):
        details = {"scheduled_time": f"2026-01-02T04:0{minute}:00Z"}
        planned = {"name": name, "state": {"type": "SCHEDULED", "state_details": details}}
        runs.append(prefect_server.call(f"/deployments/{verify['id']}/create_flow_run", planned))
        late = {"type": "SCHEDULED", "name": "Late", "state_details": details}
        prefect_server.call(f"/flow_runs/{runs[-1]['id']}/set_state", {"state": late, "force": True})
    noted, given = tmp_path / "late.json", channels({"SRPO_NOTIFY": receiver.url})

    def check(send=lambda message: deliver(message, given)[given[0]] is None):
        return notify_late(send, noted, now=datetime(2026, 1, 2, 4, 15, tzinfo=UTC))

    assert check(lambda _: False) == 1, "no channel took the message, so it is sent again"
    assert [check(), check()] == [1, 0]
    (message,) = receiver.messages
    assert message["title"] == "SRPO late schedule: verify, 2 runs"
    assert message["message"] == (
        "planned for 2026-01-02 04:03 UTC and not started 12 minutes later; is a worker running? "
        "prefect worker start --pool local-process"
    )
    for run in runs:
        cancelled = {"type": "CANCELLED", "name": "Cancelled"}
        prefect_server.call(f"/flow_runs/{run['id']}/set_state", {"state": cancelled, "force": True})
    assert check() == 0
    assert json.loads(noted.read_text()) == []


def test_a_new_version_of_the_data_starts_a_run_with_its_commit_and_its_settings(deployed, prefect_server):
    """The event is sent as the flow `data` sends it; no worker takes the run that it starts."""
    patch = {"ingest": {"source": "data/new", "format": "pairs", "test_share": 0.1}}
    event = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": "hpd.version.published",
        "resource": {"prefect.resource.id": "hpd.version.data/new/0123456789ab"},
        "payload": {"tag": "data/new/0123456789ab", "rev": "0123abc", "patch": patch},
        "id": str(uuid4()),
    }
    prefect_server.call("/events", [event])
    deployment = prefect_server.call("/deployments/name/align/align-on-new-data")
    (run,) = prefect_server.wait(
        "/flow_runs/filter",
        {"deployments": {"id": {"any_": [deployment["id"]]}}},
        lambda runs: len(runs) == 1,
        seconds=60,
    )
    assert run["parameters"] == {"profile": None, "publish": True, "revision": "0123abc", "patch": patch}
