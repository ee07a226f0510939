import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from attempts import record_attempt
from faulty_proxy import FaultyProxy, without
from living import ended, runs
from PIL import Image
from standin import ROOT, git, keep_stages

from flows.align import align
from flows.align_result import markdown
from flows.form import parse_patch
from srpo_core.errors import ConfigError, StageError, StoreError
from srpo_core.release import publishing, verify
from srpo_core.training.watchdog import restart_line
from srpo_core.workspace.run_record import read_records

pytestmark = pytest.mark.pipeline

STALLED = "step 7 stalled for 31 s at rank 1 in learner.py:80 step"
# what training prints and writes when its workers stall, and die, and the alarm ends it
STALL_AND_ALARM = f"""
if stage == "train":
    print({restart_line(STALLED, 1, 3)!r})
    print({restart_line("worker 1 failed: it was killed", 2, 3)!r})
    (out / "outcome.json").write_text(json.dumps({{"alarm": {{"reason": "by step 8 it is proven"}}}}))
"""
STAGES = ["ingest", "train", "gate", "report", "quantize"]


def run(**parameters):
    return align(**{"publish": False, **parameters})


def newest_run(server):
    runs = server.call("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    return runs[0]


def edges(server, run):
    """Return the edges of a run's graph as the UI draws them: the tasks before each task."""
    tasks = server.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    names = {task["id"]: task["name"] for task in tasks}
    return {
        task["name"]: {
            names[one["id"]] for inputs in task["task_inputs"].values() for one in inputs if "id" in one
        }
        for task in tasks
    }


def test_results_are_copied_to_the_checkout_and_a_second_run_is_cached(standin, prefect):
    first = run()
    assert [(stage.stage, stage.cached) for stage in first.stages] == [(name, False) for name in STAGES]
    assert first.passed
    assert first.home
    assert first.report == standin / ".srpo/report.html"
    assert first.report.read_text() == (standin / "runs/report/report.html").read_text()
    repro = subprocess.run(["dvc", "repro"], capture_output=True, text=True, check=True, cwd=standin)
    assert repro.stdout.count("didn't change, skipping") == len(STAGES)

    second = run()
    assert [stage.cached for stage in second.stages] == [True] * len(STAGES)
    assert second.workspace != first.workspace
    state = newest_run(prefect)
    assert state["state_name"] == "Completed"
    tasks = prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [state["id"]]}}})
    assert {task["name"]: task["state_name"] for task in tasks} == dict.fromkeys(STAGES, "Cached")
    assert edges(prefect, state) == {
        "ingest": set(),
        "train": {"ingest"},
        "gate": {"train"},
        "report": {"gate"},
        "quantize": {"gate"},
    }
    assert "| train | cached |" in markdown(second)


def test_a_run_with_a_refused_model_ends_as_refused_skips_quantize_and_notifies(
    standin, prefect, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    monkeypatch.setenv("SRPO_STORE_URL", "https://releases.example.org/srpo/")
    steps = standin / "steps.py"
    steps.write_text(steps.read_text() + STALL_AND_ALARM)
    git(standin, "commit", "--quiet", "--all", "-m", "training that stalls")
    result = run(patch=parse_patch({"gate": {"resamples": 2000}}))
    assert not result.passed
    assert [stage.stage for stage in result.stages] == STAGES[:-1]
    assert not (result.workspace / "runs/quantize").exists()
    assert not result.home, "the checkout has other settings"
    assert result.report == result.workspace.parent / "report.html"
    assert '"refused"' in result.report.read_text()
    assert not (standin / ".srpo/report.html").exists()
    state = newest_run(prefect)
    assert (state["state_type"], state["state_name"]) == ("COMPLETED", "Refused")
    assert state["state"]["message"] == "refused: as the resamples say."
    assert markdown(result).startswith("## Refused\n")
    (record,) = read_records(standin / ".srpo")
    assert (record.flow_run, record.flow_run_name) == (state["id"], state["name"])
    assert (record.state, record.verdict, record.profile) == ("completed", "refused", "tiny")
    assert record.settings["gate"]["resamples"] == 2000
    titles = [
        f"SRPO {kind}: tiny, run {state['name']}" for kind in ("refused", "reward hacking alarm", "stall")
    ]
    assert receiver.titles(3) == titles
    cause, address, report = receiver.body(titles[0])
    assert cause == "as the resamples say."
    assert address == f"run: {prefect.url.removesuffix('/api')}/runs/flow-run/{state['id']}"
    page = f"https://releases.example.org/srpo/reports/{record.run_id}/report.html"
    assert report == f"report: {page}"
    assert f"- report: [{page}](<{page}>)" in markdown(result)
    assert record.report_store == str(standin / "store")
    stored = standin / "store/reports" / record.run_id / "report.html"
    assert stored.read_bytes() == result.report.read_bytes()
    assert receiver.body(titles[1])[0] == "by step 8 it is proven"
    assert receiver.body(titles[2])[0] == restart_line(STALLED, 1, 3)


def test_a_failing_stage_fails_the_run_with_its_error_line_and_notifies(
    standin, prefect, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", f"json://127.0.0.1:1/plantedSECRET0abc {receiver.url}")
    with pytest.raises(StageError, match=r"^stage train: the loss is NaN at step 7$") as caught:
        run(patch=parse_patch({"train": {"batch_size": 665}}))
    assert caught.value.exit_code == 4
    state = newest_run(prefect)
    assert state["state_type"] == "FAILED"
    assert "the loss is NaN at step 7" in state["state"]["message"]
    (record,) = read_records(standin / ".srpo")
    assert (record.state, record.reason) == ("failed", "stage train: the loss is NaN at step 7")
    title = f"SRPO failed: tiny, run {state['name']}"
    assert receiver.titles(1) == [title]
    assert receiver.body(title)[0] == "stage train: the loss is NaN at step 7"
    body = {"logs": {"flow_run_id": {"any_": [state["id"]]}, "level": {"ge_": 30, "le_": 30}}}
    (warning,) = prefect.wait("/logs/filter", body, bool, seconds=60)
    assert warning["message"].startswith("SRPO_NOTIFY: channel 1 (json) failed")
    assert "planted" not in warning["message"]


def test_a_run_includes_uncommitted_edits_unless_a_revision_is_named(standin, prefect):
    steps = standin / "steps.py"
    steps.write_text(steps.read_text().replace("images on", "images of"))
    assert " images of " in (run().workspace / "runs/train/weights.txt").read_text()
    committed = run(revision="main")
    assert " images on " in (committed.workspace / "runs/train/weights.txt").read_text()
    assert not committed.home
    assert " images of " in (standin / "runs/train/weights.txt").read_text()


def test_params_yaml_is_used_if_no_profile_is_named(standin, prefect):
    keep_stages(standin, "ingest", "gate", "report")
    params = standin / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 5"))
    result = run(profile=None)
    assert (result.workspace / "runs/ingest/numbers.json").read_text().startswith("[5,")
    assert result.home
    params.write_text(params.read_text() + "\nsead: 1\n")
    with pytest.raises(ConfigError, match=r"unknown key 'sead'"):
        run(profile=None)


def test_a_release_that_fails_verification_is_withdrawn_and_one_that_passes_is_notified(
    standin, prefect, receiver, monkeypatch
):
    """The stand-in publishes no model; this tests the order of the calls, on a store that is a text file."""
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    store = standin / "store.txt"
    published = publishing.Published("tiny-1", "store/tiny-1", created=True, alias="candidate", previous=None)

    def publish(_, *, root, why, cost):
        assert cost is None, "the stand-in's stages do not run by 'srpo stage', which records times"
        assert (root / "runs/quantize/model.bin").is_file()
        assert why.startswith("run ")
        store.write_text(published.version)
        return published

    def withdraw(_, what):
        assert what == published
        store.unlink()

    def fail_to_verify(_, version):
        assert store.read_text() == version
        raise StoreError("tiny-1 is damaged")

    monkeypatch.setattr(publishing, "publish", publish)
    monkeypatch.setattr(publishing, "withdraw", withdraw)
    monkeypatch.setattr(verify, "verify", fail_to_verify)
    with pytest.raises(StoreError, match="tiny-1 is damaged"):
        run(publish=True)
    assert not store.exists()
    monkeypatch.setattr(verify, "verify", lambda _, version: {"files": {version: {}}})
    assert run(publish=True).release == "store/tiny-1"
    drawn = edges(prefect, newest_run(prefect))
    assert (drawn["publish"], drawn["verify"]) == ({"report", "quantize"}, {"publish"})
    assert store.read_text() == "tiny-1"
    released, withdrawn = read_records(standin / ".srpo")
    assert (withdrawn.state, withdrawn.release) == ("failed", None)
    assert (released.state, released.version) == ("completed", "tiny-1")
    title = "SRPO published: tiny, tiny-1"
    assert title in receiver.titles(2)
    assert receiver.titles(2)[0].startswith("SRPO failed: tiny, run ")
    cause, _, report = receiver.body(title)
    assert cause == "as the resamples say."
    assert report.startswith(f"report: {standin}/store/reports/{released.run_id}/report.html on ")


def test_a_report_that_the_store_cannot_take_is_a_warning_and_its_link_the_path_on_this_machine(
    standin, prefect, caplog
):
    keep_stages(standin, "gate", "report")
    (standin / "store").mkdir()
    (standin / "store/reports").write_text("no directory")
    result = run()
    assert result.links == {"report": str(result.report)}
    assert f"- report: `{result.report}`" in markdown(result)
    assert "the links to the report work only on this machine: the store " in caplog.text


def test_an_address_of_the_store_that_cannot_be_used_ends_the_run_before_its_first_stage(
    standin, prefect, monkeypatch
):
    monkeypatch.setenv("SRPO_STORE_URL", "releases.example.org")
    with pytest.raises(ConfigError, match=r"^SRPO_STORE_URL=releases\.example\.org: write the address "):
        run()
    assert not (standin / "runs").exists()


def test_the_production_release_becomes_the_champion_unless_the_settings_name_one(
    standin, prefect, monkeypatch
):
    from srpo_core.storage import open_store

    keep_stages(standin, "gate", "report")
    monkeypatch.setenv("SRPO_STORE", str(standin / "store"))
    open_store().write_alias("other/production", {"version": "other-0123", "history": []}, None)
    open_store().write_alias("tiny/production", {"version": "tiny-0123", "history": []}, None)
    for patch, champion in (({}, "tiny-0123"), ({"champion": "tiny-4567"}, "tiny-4567")):
        settings = run(patch=patch).workspace / "params.yaml"
        assert yaml.safe_load(settings.read_text())["champion"] == champion
    own = standin / "params.yaml"
    own.write_text(yaml.safe_dump(yaml.safe_load(own.read_text()) | {"champion": "tiny-89ab"}))
    settings = run(profile=None).workspace / "params.yaml"
    assert yaml.safe_load(settings.read_text())["champion"] == "tiny-89ab"


def test_verdict_rules_and_grid_are_artifacts_in_the_ui(standin, prefect):
    """The stand-in's gate has no rules and its report no grid, so both are added here."""
    keep_stages(standin, "gate", "report")
    steps = standin / "steps.py"
    text = steps.read_text()
    rules = [
        {"name": name, "verdict": verdict, "value": 0.5, "low": 0.4, "high": 0.6, "side": "at_least"}
        | {"margin": 0.1, "reason": f"{name} it is"}
        for name, verdict in (("held", "holds"), ("broken", "refuses"))
    ]
    text = text.replace(
        '"reason": "as the resamples say."}', f'"reason": "as they say.", "rules": {rules!r}}}'
    )
    text += (
        'if stage == "report":\n    from PIL import Image\n'
        '    Image.effect_noise((2400, 300), 90).save(out / "grid.png")\n'
    )
    steps.write_text(text)
    run()
    newest = newest_run(prefect)["id"]
    found = prefect.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [newest]}}})
    by_key = {one["key"]: one for one in found}
    assert {key: one["type"] for key, one in by_key.items()} == {
        "align": "markdown",
        "gate": "table",
        "grid": "image",
    }
    assert [row["name"] for row in json.loads(by_key["gate"]["data"])] == ["broken", "held"]
    head, _, data = by_key["grid"]["data"].partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (2000, 250)


def test_a_damaged_grid_is_no_artifact_and_the_run_completes(standin, prefect):
    keep_stages(standin, "gate", "report")
    steps = standin / "steps.py"
    steps.write_text(
        steps.read_text() + 'if stage == "report":\n    (out / "grid.png").write_bytes(b"\\x89PNG")\n'
    )
    run()
    newest = newest_run(prefect)
    found = prefect.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [newest["id"]]}}})
    assert [one["key"] for one in found] == ["align"]
    assert newest["state_type"] == "COMPLETED"


def test_a_run_beyond_its_limit_of_cost_ends_before_the_stage_and_resumes_with_a_higher_one(standin, prefect):
    """The stage gate is the real one, which needs no plan; with a higher limit it runs into its missing input."""
    keep_stages(standin, "ingest", "gate", "report")
    graph = yaml.safe_load((standin / "dvc.yaml").read_text())
    command = f"PYTHONPATH={ROOT} {sys.executable} -m srpo_core stage gate"
    graph["stages"]["gate"] |= {"cmd": command, "params": ["seed", "model", "champion", "evaluate", "gate"]}
    (standin / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    record_attempt("ingest", 1, price=10)
    limited = {"price": 10, "max_cost": 5, "hardware": {"tflops": 1, "float32_tflops": 1, "mfu": 0.5}}
    message = r"gate is not started: this run has cost 10\.00 USD, gate would cost 0\.00 USD by plan"
    with pytest.raises(StageError, match=f"^stage gate: {message}") as stopped:
        run(patch=parse_patch({"resources": limited}))
    assert stopped.value.exit_code == 3
    assert newest_run(prefect)["state_type"] == "FAILED"
    with pytest.raises(StageError, match=r"^stage gate: runs/\S+ is missing"):
        run(patch=parse_patch({"resources": limited | {"max_cost": 10}}))

    params = standin / "params.yaml"
    settings = yaml.safe_load(params.read_text())
    params.write_text(yaml.safe_dump(settings | {"resources": settings["resources"] | limited}))
    repro = subprocess.run(["dvc", "repro"], capture_output=True, text=True, check=False, cwd=standin)
    assert repro.returncode
    assert re.search(message, repro.stderr)


@pytest.mark.parametrize(
    ("ending", "shown"),
    [
        (signal.SIGKILL, "CRASHED"),  # by the next run: no worker looked after this one
        (signal.SIGINT, "CRASHED"),
        pytest.param(signal.SIGTERM, "CRASHED", marks=pytest.mark.nightly),  # handled almost as SIGINT
    ],
    ids=["kill -9", "Ctrl-C", "SIGTERM"],
)
def test_a_run_killed_in_a_stage_leaves_no_process_and_can_be_repeated(standin, prefect, ending, shown):
    marker = standin / ".srpo/pid"
    command = [
        sys.executable,
        "-m",
        "srpo_core",
        "align",
        "--profile=tiny",
        "--no-publish",
        "--set",
    ]
    killed = subprocess.Popen(
        [*command, "train.batch_size=1000"],
        env={**os.environ, **prefect.environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 300
    while not (marker.exists() and marker.read_text().endswith("\n")):
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    stage = psutil.Process(int(marker.read_text()))
    assert runs(stage)
    killed.send_signal(ending)
    printed = killed.communicate()[1]
    assert "Traceback" not in printed
    if ending == signal.SIGINT:
        assert killed.returncode == 130
        assert printed.endswith("\nsrpo: error: interrupted; repeat the same command to resume\n")
    assert ended([stage], seconds=15), "the stage outlived its run"
    again = subprocess.run(
        [*command, "train.batch_size=8"],
        env={**os.environ, **prefect.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "✓ ingest        cached" in again.stderr
    assert "✓ train         done" in again.stderr
    completed, ended_run = prefect.call("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 2})
    assert (completed["state_type"], ended_run["state_type"]) == ("COMPLETED", shown)
    tasks = prefect.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [ended_run["id"]]}}})
    assert "RUNNING" not in {task["state_type"] for task in tasks}


def test_a_store_that_cannot_be_written_to_ends_the_run_before_its_first_stage(standin, prefect, monkeypatch):
    (standin / "file").write_text("no directory")
    monkeypatch.setenv("SRPO_STORE", str(standin / "file"))
    with pytest.raises(StoreError, match=r"^the store \S+/file "):
        run(publish=True)
    assert newest_run(prefect)["state_type"] == "FAILED"
    assert not list(standin.glob(".srpo/runs/*/*/runs/ingest"))
    assert not (standin / "runs/ingest").exists()


@pytest.mark.s3
def test_a_bucket_without_conditions_ends_the_run_before_its_first_stage(
    standin, prefect, bucket, s3_environment, monkeypatch
):
    proxy = FaultyProxy(s3_environment, without("if-match"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("SRPO_STORE", f"s3://{bucket}/p")
    try:
        with pytest.raises(StoreError, match=r"does not honour conditional writes \(If-Match\)"):
            run(publish=True)
        assert not list(standin.glob(".srpo/runs/*/*/runs/ingest"))
    finally:
        proxy.close()
