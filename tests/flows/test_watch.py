"""The flow `watch` starts exactly one run for data that moved; no worker takes the runs that it starts."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from data_of_production import make_version, promote_release_of

from flows.watch import watch
from srpo_core.errors import ConfigError
from srpo_core.workspace.git import git

COLUMNS = {"prompt": "prompt", "style": "style"}

pytestmark = pytest.mark.pipeline


def write_prompts(path, seed, photos, count=300):
    styles = np.random.default_rng(seed).random(count) < photos
    rows = [
        {"prompt": f"prompt {seed} {number}", "style": "photo" if photo else "anime"}
        for number, photo in enumerate(styles)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def versions(deployed, tmp_path_factory):
    """Versions of the deployed checkout: of production, of another sample, and two that moved."""
    top, checkout = tmp_path_factory.mktemp("versions"), Path(deployed["SRPO_CHECKOUT"])
    return {
        name: make_version(
            checkout,
            write_prompts(top / f"{name}.jsonl", day, photos),
            "words",
            "prompts",
            day,
            columns=COLUMNS,
        )
        for day, (name, photos) in enumerate({"old": 0.5, "same": 0.5, "moved": 0.9, "other": 0.1}.items(), 1)
    }


@pytest.fixture
def worker(deployed, versions, prefect, tmp_path, monkeypatch):
    """The deployed checkout as the current directory, with an empty store; return both."""
    monkeypatch.delenv("SRPO_HOME", raising=False)
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(deployed["SRPO_CHECKOUT"])
    return Path.cwd(), tmp_path / "store"


def runs_of(server, deployment):
    found = server.call(f"/deployments/name/{deployment}")
    query = {"flow_runs": {"deployment_id": {"any_": [found["id"]]}}}
    return {run["name"]: run for run in server.call("/flow_runs/filter", query)}


def latest(server, key):
    (artifact,) = server.call("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    return artifact


def test_a_version_that_moved_starts_one_run_and_never_a_second(
    worker, versions, prefect, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    promote_release_of(*worker, 1, versions["old"])
    before = runs_of(prefect, "align/align-on-new-data")
    first = watch(version=versions["moved"])
    started = runs_of(prefect, "align/align-on-new-data")
    (name,) = started.keys() - before.keys()
    assert (first.drift, first.run) == (True, name)
    assert first.line.endswith(f"started run {name}")
    run = started[name]
    assert run["state_type"] == "SCHEDULED"
    assert run["parameters"]["revision"] == git(worker[0], "rev-parse", versions["moved"])
    assert run["parameters"]["patch"]["ingest"]["source"] == "data/words"
    assert run["parameters"]["patch"]["check_reward"] == {"max_pairs": "null"}
    rows = json.loads(latest(prefect, "drift")["data"])
    names = [
        run["name"]
        for run in prefect.call("/task_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 2})
    ]
    assert sorted(names) == ["compare", "start a run"], "as the graph of the run shows them"
    assert {row["figure"] for row in rows} == {"styles", "agreement", "style anime", "style photo"}
    image = latest(prefect, "drift-chart")["data"].partition("base64,")[2]
    assert "photo" in base64.b64decode(image).decode()

    again = watch(version=versions["moved"])
    assert (again.drift, again.run) == (True, name)
    assert again.line.endswith(f"not started again: there is run {name}")
    failed = {"state": {"type": "FAILED", "name": "Failed"}, "force": True}
    prefect.call(f"/flow_runs/{run['id']}/set_state", failed)
    assert watch(version=versions["moved"]).run == name, "what was found is not started again each night"
    assert runs_of(prefect, "align/align-on-new-data").keys() == started.keys()
    title = f"SRPO drift: tiny, {versions['moved']}"
    assert receiver.titles(1) == [title]
    assert receiver.body(title)[0].startswith("drift: styles moved by ")
    assert f"/runs/flow-run/{run['id']}" in receiver.body(title)[-1]


def test_a_run_that_the_event_of_the_version_started_is_not_doubled_unless_it_failed(
    worker, versions, prefect
):
    promote_release_of(*worker, 5, versions["old"])
    commit = git(worker[0], "rev-parse", versions["other"])
    event = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": "hpd.version.published",
        "resource": {"prefect.resource.id": f"hpd.version.{versions['other']}"},
        "payload": {"rev": commit, "patch": {"ingest": {"source": "data/words", "format": "prompts"}}},
        "id": str(uuid4()),
    }
    prefect.call("/events", [event])
    deployment = prefect.call("/deployments/name/align/align-on-new-data")
    runs = prefect.wait(
        "/flow_runs/filter",
        {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}},
        lambda runs: any(run["parameters"]["revision"] == commit for run in runs),
        seconds=60,
    )
    (run,) = [run for run in runs if run["parameters"]["revision"] == commit]
    found = watch()
    assert (found.drift, found.run) == (True, run["name"]), (
        "the newest version is taken, and its run is known"
    )
    crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
    prefect.call(f"/flow_runs/{run['id']}/set_state", crashed)
    started = watch()
    assert started.run not in (None, run["name"])
    assert watch().run == started.run


def test_data_that_did_not_move_start_nothing(worker, versions, prefect):
    assert watch().line.startswith("nothing to compare: no release of tiny is in production")
    promote_release_of(*worker, 6, versions["old"])
    before = runs_of(prefect, "align/align-on-new-data").keys()
    assert watch(version=versions["same"]).line.startswith("no drift: styles moved by 0.")
    assert "was trained on the newest version" in watch(version=versions["old"]).line
    shown = watch(version=versions["moved"], start=False)
    assert shown.line.endswith(
        f"start a run: srpo align --revision {versions['moved']} --set ingest.source=data/words "
        "--set ingest.format=prompts --set check_reward.max_pairs=null --set train.rollout.source=online"
    )
    assert runs_of(prefect, "align/align-on-new-data").keys() == before


def test_prompts_of_a_file_that_moved_start_the_flow_that_makes_a_version_of_them(
    worker, versions, prefect, tmp_path
):
    promote_release_of(*worker, 7, versions["old"])
    file = write_prompts(tmp_path / "new.jsonl", 9, 0.95)
    ingest = {"columns": COLUMNS}
    found = watch(prompts=str(file), ingest=ingest, name="asked")
    run = runs_of(prefect, "data/data")[found.run]
    assert run["parameters"] == {
        "source": str(file),
        "name": "asked",
        "format_name": "prompts",
        "ingest": ingest,
    }
    assert watch(prompts=str(file), ingest=ingest, name="asked").run == found.run
    with pytest.raises(ConfigError, match="version and prompts exclude each other"):
        watch(prompts=str(file), version=versions["old"])
