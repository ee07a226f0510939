import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import short_pipeline
import yaml

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.pipeline


@pytest.fixture
def deployed(prefect_server, standin):
    """The stand-in with the project's flows and pipelines.yaml, deployed."""
    shutil.copytree(ROOT / "flows", standin / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pipelines.yaml", standin)
    return deploy(prefect_server, standin)


def deploy(server, checkout):
    """Run the commands in the first lines of pipelines.yaml; return the environment of a worker."""
    environment = {**server.environment, "SRPO_CHECKOUT": str(checkout), "PYTHONPATH": str(checkout)}
    for command in (
        ["prefect", "work-pool", "create", "local-process", "--type", "process", "--overwrite"],
        ["prefect", "--no-prompt", "deploy", "--prefect-file", "pipelines.yaml", "--all"],
    ):
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return environment


def test_every_flow_is_deployed_and_its_form_offers_the_settings(deployed, prefect_server):
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


def stop(worker):
    """End a worker of Prefect; on a busy machine it may not answer the signal in time."""
    os.killpg(worker.pid, signal.SIGINT)
    try:
        worker.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(60)


def test_a_run_started_over_the_api_with_a_changed_seed_finishes(prefect_server, tmp_path):
    """The real road, with the short settings."""
    checkout = short_pipeline.make_checkout(tmp_path / "checkout")
    worker_environment = deploy(prefect_server, checkout.path)
    align = prefect_server.call("/deployments/name/align/align")
    run = prefect_server.call(
        f"/deployments/{align['id']}/create_flow_run",
        {"parameters": {"patch": {"seed": 3}, "publish": False}, "state": {"type": "SCHEDULED"}},
    )
    log = tmp_path / "worker.log"
    with log.open("w") as output:
        worker = subprocess.Popen(
            ["prefect", "worker", "start", "--pool", "local-process"],
            env=worker_environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            ended = prefect_server.wait(
                f"/flow_runs/{run['id']}",
                None,
                lambda run: run["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"},
                seconds=420,
            )
        finally:
            stop(worker)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"] + log.read_text()
    (settings,) = checkout.path.glob(".srpo/runs/*/workspace/params.yaml")
    assert yaml.safe_load(settings.read_text())["seed"] == 3
    assert (settings.parent / "runs/report/report.html").is_file()
    tasks = prefect_server.call(
        "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    )
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [task["name"] for task in tasks] == list(stages)


def test_a_key_that_is_no_setting_is_refused_before_a_run_exists(deployed, prefect_server):
    align = prefect_server.call("/deployments/name/align/align")
    with pytest.raises(OSError, match=r"40\d|42\d"):
        prefect_server.call(
            f"/deployments/{align['id']}/create_flow_run", {"parameters": {"patch": {"sead": 3}}}
        )
