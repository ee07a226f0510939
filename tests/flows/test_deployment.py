import re
import shutil
from pathlib import Path

import pytest
import yaml
from prefect_server import deploy
from standin import make_standin

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def deployed(prefect_server, tmp_path_factory):
    """Deploy the project's flows and pipelines.yaml from a stand-in; return the environment of a worker."""
    checkout = make_standin(tmp_path_factory.mktemp("deployed") / "standin")
    shutil.copytree(ROOT / "flows", checkout / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipelines.yaml", checkout)
    return deploy(prefect_server, checkout)


def test_every_flow_is_deployed_with_a_form_for_the_settings(deployed, prefect_server):
    entries = yaml.safe_load((ROOT / "pipelines.yaml").read_text())["deployments"]
    named = {entry["entrypoint"] for entry in entries}
    flows = {
        f"flows/{path.name}:{name}"
        for path in (ROOT / "flows").glob("*.py")
        for name in re.findall(r"^@flow\(.*\)\ndef (\w+)", path.read_text(), flags=re.MULTILINE)
    }
    assert named == flows
    align = prefect_server.call("/deployments/name/align/align")
    schema = align["parameter_openapi_schema"]
    assert set(schema["properties"]) == {"profile", "patch", "revision", "publish"}
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
