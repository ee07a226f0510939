"""The whole pipeline as a user runs it, with short settings.

`make test` runs it once, and kills that run once in the middle of training; `make demo` is a run without a kill.
`make test-all` adds repetitions and a run over Prefect's API. All tests share one checkout. The first run starts its
own Prefect server, as in a terminal; later runs use the server of the tests.
"""

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from http import HTTPStatus

import psutil
import pytest
import short_pipeline
import yaml
from prefect_server import deploy, running_worker
from ray_head import ray_head

STAGES = [
    *("ingest", "embed", "rollouts", "check_reward", "train"),
    *("select", "evaluate", "gate", "report", "quantize"),
]
# evaluate ends when the rules of the gate are decided, so it depends on them
DECIDED_BY_THE_GATE = {"evaluate", "gate", "report", "quantize"}
REPRODUCED = ["ingest", "embed", "rollouts", "train", "select", "quantize"]


def wait_for(found, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"nothing after {seconds} s")


def commands_of(path):
    """Return the command lines of running processes that use a directory."""
    found = []
    for process in psutil.process_iter():
        try:  # a process may end between the listing and the query
            words, cwd = process.cmdline(), process.cwd()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(path) in word for word in (cwd, *words)):
            found.append(words)
    return found


def is_prefect_server(command):
    return any("prefect.server" in word for word in command)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return short_pipeline.make_checkout(tmp_path_factory.mktemp("first") / "checkout")


@pytest.fixture(scope="module")
def killed(checkout):
    """Kill the run by `kill -9` after its first checkpoint, in the middle of training; return its log."""
    resume, log = checkout.path / ".srpo/resume", checkout.path.parent / "killed.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            checkout.command("align", "--profile", "tiny"),
            cwd=checkout.path,
            env=checkout.environment,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        wait_for(lambda: list(resume.glob("train-*/step-000002")), 900)  # other tests run beside it
        checkout.foreign_answer = answer_to_a_foreign_page(checkout.path)
        os.kill(process.pid, signal.SIGKILL)
    return log.read_text()


def answer_to_a_foreign_page(path):
    """Send what a page in a browser can send to the server of a run; return status and headers of the answer."""
    (command,) = [words for words in commands_of(path) if is_prefect_server(words) and "--port" in words]
    port = command[command.index("--port") + 1]
    headers = {"Origin": "https://evil.example", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/deployments/filter", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


@pytest.fixture(scope="module")
def first(checkout, killed):
    """Complete the run by the same command; save the hashes of its outputs as `checkout.reference`."""
    done = checkout.srpo("align", "--profile", "tiny")
    checkout.reference = checkout.outputs()
    return done


@pytest.mark.whole_run
def test_neither_a_stage_nor_the_prefect_server_outlives_a_killed_run(checkout, killed):
    wait_for(lambda: not commands_of(checkout.path), 30)


@pytest.mark.whole_run
def test_the_server_of_a_run_refuses_a_page_in_a_browser(checkout, killed):
    status, headers = checkout.foreign_answer
    assert status == HTTPStatus.UNAUTHORIZED
    assert "Access-Control-Allow-Origin" not in headers
    secret = checkout.path / ".srpo/prefect/auth"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text().strip() not in killed


@pytest.mark.whole_run
def test_the_same_command_after_a_kill_trains_only_the_missing_steps_and_ends_with_a_release(
    checkout, killed, first
):
    assert "verdict  passed" in first.stdout
    assert "report   .srpo/report.html" in first.stdout
    release = checkout.path / next(
        line.split()[1] for line in first.stdout.splitlines() if line.startswith("release")
    )
    assert (release / "manifest.json").is_file()
    assert (checkout.path / "runs/report/report.html").stat().st_size > 10_000
    (trained,) = checkout.steps_trained()
    assert 1 <= trained <= 2
    for stage in ("ingest", "embed", "rollouts", "check_reward"):
        assert f"✓ {stage}" in killed
    assert not list((checkout.path / ".srpo/resume").glob("train-*/"))
    wait_for(lambda: not commands_of(checkout.path), 30)


@pytest.mark.whole_run
def test_every_stage_reports_its_start_and_its_end(first):
    for stage in STAGES:
        assert f"▸ {stage}" in first.stderr
        assert f"✓ {stage}" in first.stderr


def without_cost(page):
    """Cut the part about cost out of a report."""
    return re.sub(r'<h3 class="sub">Cost</h3>.*?</section>', "", page, flags=re.DOTALL)


@pytest.mark.whole_run
def test_a_copy_of_the_report_lists_the_formats_and_the_cost_of_the_run(checkout, first):
    copy = checkout.path / next(
        line.split()[1] for line in first.stdout.splitlines() if line.startswith("report")
    )
    page = copy.read_text()
    for row in ("bf16", *STAGES):
        assert f'<td class="name">{row}</td>' in page
    assert '<td class="name">bf16</td>' not in (checkout.path / "runs/report/report.html").read_text()
    output = checkout.srpo("report").stdout
    assert "report   .srpo/report.html" in output
    assert re.search(
        r"^wins     judge_wanted against the base: \d+ of 18 images gained, \d+ lost, \d+ within 0.05",
        output,
        re.M,
    )
    assert f"device hours in {len(STAGES)} stages timed here" in output
    # the run that was killed trained first, so the run that completed it took what was before from the cache
    assert "ingest, embed, rollouts, check_reward ran in an earlier run and came from the cache" in page
    assert "a stage that was killed and resumed are counted: train 2." in page
    assert without_cost(copy.read_text()) == without_cost(page)


@pytest.mark.whole_run
def test_the_release_is_complete_and_generates_an_image(checkout, first):
    assert "files are intact" in checkout.srpo("verify", "candidate").stdout
    shown = checkout.srpo("show", "candidate").stdout
    assert re.search(r"^cost     train  .* h on 1 machine, .* device hours, 2 attempts$", shown, re.M)
    checkout.srpo("generate", "--release", "candidate", "red apple", "--output", ".srpo/apple.png")
    assert (checkout.path / ".srpo/apple.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.whole_run
def test_a_second_run_without_changes_runs_no_stage(checkout, first, prefect_server):
    again = checkout.srpo(
        "align",
        "--profile",
        "tiny",
        PREFECT_API_URL=prefect_server.url,
        PREFECT_API_AUTH_STRING=prefect_server.secret,
    )
    for stage in STAGES:
        assert f"✓ {stage:<14}cached" in again.stderr, again.stderr
    assert len(checkout.steps_trained()) == 1
    assert first.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]


@pytest.mark.whole_run
def test_dvc_repro_after_a_run_runs_no_stage(checkout, first):
    done = checkout.run("dvc", "repro")
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


@pytest.mark.whole_run
def test_dvc_exp_show_lists_the_figures_of_every_gate_rule(checkout, first):
    shown = json.loads(checkout.run("dvc", "exp", "show", "--json").stdout)
    (here,) = (row["data"] for row in shown if row["rev"] == "workspace")
    listed = here["metrics"]["runs/gate/figures.json"]["data"]["rules"]
    rules = checkout.json("runs/gate/decision.json")["rules"]
    assert listed["style_gained"].keys() == {"value", "low", "high", "passed"}
    assert {name: figures["passed"] for name, figures in listed.items()} == {
        rule["name"]: rule["passed"] for rule in rules
    }
    # a rule that does not apply, such as one against a champion, has no figures
    for end in ("value", "low", "high"):
        assert {name: figures.get(end) for name, figures in listed.items()} == {
            rule["name"]: rule[end] for rule in rules
        }


@pytest.mark.whole_run
def test_a_run_changes_only_the_lock_in_the_checkout(checkout, first):
    assert checkout.git("status", "--porcelain").split() in ([], ["??", "dvc.lock"], ["M", "dvc.lock"])


@pytest.mark.whole_run
def test_a_refusal_is_a_result_and_nothing_is_published(checkout, first, prefect_server):
    before = checkout.srpo("releases").stdout
    refused = checkout.srpo(
        *["align", "--set", "gate.rules.style_gained.margin=2"],
        check=False,
        PREFECT_API_URL=prefect_server.url,
        PREFECT_API_AUTH_STRING=prefect_server.secret,
    )
    assert refused.returncode == 3
    assert "verdict  refused" in refused.stdout
    assert "release  none" in refused.stdout
    report = checkout.path / next(
        line.split()[1] for line in refused.stdout.splitlines() if line.startswith("report")
    )
    assert report.match(".srpo/runs/*/report.html"), (
        "a run with other settings must keep the checkout's own copy"
    )
    assert '<td class="name">bf16</td>' not in report.read_text()
    assert '<td class="name">train</td>' in report.read_text()
    assert "Traceback" not in refused.stderr
    assert checkout.srpo("releases").stdout == before
    assert len(checkout.steps_trained()) == 1, "a threshold of the gate must not retrain"


@pytest.fixture(scope="module")
def worker(checkout, first, prefect_server, tmp_path_factory):
    """Deploy the flows of the checkout, and run a worker; returns its log."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with running_worker(deploy(prefect_server, checkout.path), log):
        yield log


def run_deployment(server, name, parameters, log):
    """Start a run over the API, wait until it has ended, and return it."""
    deployment = server.call(f"/deployments/name/{name}/{name}")
    run = server.call(
        f"/deployments/{deployment['id']}/create_flow_run",
        {"parameters": parameters, "state": {"type": "SCHEDULED"}},
    )
    ended = server.wait(
        f"/flow_runs/{run['id']}",
        None,
        lambda run: run["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"},
        seconds=900,
    )
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"] + log.read_text()
    return ended


@pytest.mark.pipeline
def test_a_run_started_over_the_api_applies_its_patch_and_runs_only_affected_stages(
    checkout, worker, prefect_server
):
    before = set(checkout.path.glob(".srpo/runs/*"))
    parameters = {"patch": {"gate": {"resamples": 2500}}, "publish": False}
    run = run_deployment(prefect_server, "align", parameters, worker)
    (made,) = {path for path in checkout.path.glob(".srpo/runs/*") if path.is_dir()} - before
    workspace = made / "workspace"
    assert yaml.safe_load((workspace / "params.yaml").read_text())["gate"]["resamples"] == 2500
    assert (workspace / "runs/report/report.html").is_file()
    tasks = prefect_server.call(
        "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    )
    assert [(task["name"], task["state_name"]) for task in tasks] == [
        (stage, "Completed" if stage in DECIDED_BY_THE_GATE else "Cached") for stage in STAGES
    ]


@pytest.mark.nightly  # tests/flows/test_evaluate.py has the flow without its models
def test_a_checkpoint_evaluated_over_the_api_gets_the_verdict_of_the_gate(checkout, worker, prefect_server):
    checkpoint = "runs/train/checkpoints/step-000004"
    run = run_deployment(prefect_server, "evaluate-checkpoint", {"checkpoint": checkpoint}, worker)
    decision = json.loads(
        (checkout.path / ".srpo/evaluations/step-000004/decision.json").read_text(encoding="utf-8")
    )
    assert run["state_name"] == ("Passed" if decision["passed"] else "Refused")
    assert run["state"]["message"] == decision["reason"]
    found = prefect_server.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    rules = next(one for one in found if one["key"] == "evaluate-checkpoint-rules")
    assert {row["name"] for row in json.loads(rules["data"])} == {rule["name"] for rule in decision["rules"]}


@pytest.mark.pipeline
def test_a_run_without_a_kill_gives_the_same_bytes(checkout, first):
    before, trained = checkout.reference, checkout.steps_trained()
    checkout.run("dvc", "repro", "--force", "--single-item", *REPRODUCED)
    assert checkout.steps_trained() == [*trained, 4]
    after = checkout.outputs()
    assert {stage: after[stage] for stage in REPRODUCED} == {stage: before[stage] for stage in REPRODUCED}


@pytest.mark.distributed
def test_two_workers_give_the_weights_of_one_worker_within_rounding(checkout, first):
    from safetensors.torch import load_file

    weights = "runs/train/checkpoints/step-000004/diffusion_pytorch_model.safetensors"
    alone = load_file(checkout.path / weights)
    settings = yaml.safe_load((checkout.path / "params.yaml").read_text())
    settings["resources"] |= {"train_workers": 2, "min_train_workers": 2, "shard": True}
    try:
        (checkout.path / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        checkout.run("dvc", "repro", "--force", "--single-item", "train")
        together = load_file(checkout.path / weights)
    finally:
        checkout.git("checkout", "params.yaml")
    apart = {name: float((together[name] - tensor).norm()) for name, tensor in alone.items()}
    whole = sum(tensor.square().sum().item() for tensor in alone.values()) ** 0.5
    relative = sum(one**2 for one in apart.values()) ** 0.5 / whole
    widest = max(apart, key=lambda name: apart[name] / alone[name].norm())
    print(f"all weights {relative:.1e}; {widest} {apart[widest] / alone[widest].norm():.1e}")
    # AdamW amplifies float32 rounding errors; tests/training/test_sharded_training.py compares 20 steps in float64
    assert relative < 1e-5
    assert apart[widest] < 1e-4 * alone[widest].norm(), widest


@pytest.fixture
def cluster(checkout):
    """Start a Ray cluster with two CPUs in another directory, outside any run; yield its address."""
    environment = {name: value for name, value in checkout.environment.items() if name != "PYTHONPATH"}
    with ray_head(environment, cpus=2) as address:
        yield address


@pytest.mark.distributed
def test_a_cluster_runs_the_code_of_the_run_and_gives_the_same_weights(checkout, first, cluster):
    checkout.run(
        *["dvc", "repro", "--force", "--single-item", "train"], RAY_ADDRESS=cluster, RAY_AUTH_MODE="disabled"
    )
    assert checkout.outputs()["train"] == checkout.reference["train"]
