"""The road as a user walks it: one run in `make test`, its repetitions and kills in `make test-all`."""

import json
import os
import re
import signal
import subprocess
import time

import psutil
import pytest
import short_pipeline
import yaml
from ray_head import ray_head

STAGES = ["ingest", "embed", "check_reward", "train", "select", "evaluate", "gate", "report", "quantize"]
REPRODUCED = ["ingest", "embed", "train", "select", "quantize"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return short_pipeline.make_checkout(tmp_path_factory.mktemp("road") / "checkout")


@pytest.fixture(scope="module")
def first(checkout):
    """The first run of the whole road; what it made is kept as the checkout's `reference`."""
    done = checkout.srpo("align", "--profile", "tiny")
    checkout.reference = checkout.outputs()
    return done


@pytest.mark.whole_run
def test_the_road_ends_with_a_verdict_a_report_and_a_release(checkout, first):
    assert "verdict  passed" in first.stdout
    assert "report   .srpo/report.html" in first.stdout
    release = checkout.path / next(
        line.split()[1] for line in first.stdout.splitlines() if line.startswith("release")
    )
    assert (release / "manifest.json").is_file()
    assert (checkout.path / "runs/report/report.html").stat().st_size > 10_000
    assert checkout.steps_trained() == [4]


@pytest.mark.whole_run
def test_every_stage_shows_its_start_and_its_end(first):
    for stage in STAGES:
        assert f"▸ {stage}" in first.stderr
        assert f"✓ {stage}" in first.stderr


@pytest.mark.whole_run
def test_a_copy_of_the_report_has_the_formats_and_what_the_run_cost(checkout, first):
    whole = checkout.path / next(
        line.split()[1] for line in first.stdout.splitlines() if line.startswith("report")
    )
    page = whole.read_text()
    for row in ("bf16", *STAGES):
        assert f'<td class="name">{row}</td>' in page
    assert '<td class="name">bf16</td>' not in (checkout.path / "runs/report/report.html").read_text()
    said = checkout.srpo("report").stdout
    assert "report   .srpo/report.html" in said
    assert re.search(
        r"^wins     judge_wanted against the base: \d+ of 120 images gained, \d+ lost, \d+ within 0.05",
        said,
        re.M,
    )
    assert f"device hours in {len(STAGES)} stages timed here" in said
    assert whole.read_text() == page


@pytest.mark.whole_run
def test_the_release_is_whole_and_draws_an_image(checkout, first):
    assert "files are as they were published" in checkout.srpo("verify", "candidate").stdout
    checkout.srpo("generate", "--release", "candidate", "red apple", "--output", ".srpo/apple.png")
    assert (checkout.path / ".srpo/apple.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.whole_run
def test_a_second_run_with_nothing_changed_runs_nothing(checkout, first):
    again = checkout.srpo("align", "--profile", "tiny")
    for stage in STAGES:
        assert f"✓ {stage:<14}cached" in again.stderr, again.stderr
    assert checkout.steps_trained() == [4]
    assert first.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]


@pytest.mark.whole_run
def test_dvc_repro_after_it_is_a_no_op(checkout, first):
    done = checkout.run("dvc", "repro")
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


@pytest.mark.whole_run
def test_dvc_exp_show_lists_the_figures_of_every_rule_of_the_gate(checkout, first):
    shown = json.loads(checkout.run("dvc", "exp", "show", "--json").stdout)
    (here,) = (row["data"] for row in shown if row["rev"] == "workspace")
    listed = here["metrics"]["runs/gate/figures.json"]["data"]["rules"]
    rules = checkout.json("runs/gate/decision.json")["rules"]
    assert listed["style_gained"].keys() == {"value", "low", "high", "passed"}
    assert {name: figures["passed"] for name, figures in listed.items()} == {
        rule["name"]: rule["passed"] for rule in rules
    }
    # a rule that does not apply, as those against a champion, has no figures to list
    for end in ("value", "low", "high"):
        assert {name: figures.get(end) for name, figures in listed.items()} == {
            rule["name"]: rule[end] for rule in rules
        }


@pytest.mark.whole_run
def test_a_run_leaves_the_checkout_as_it_was_but_for_the_lock(checkout, first):
    assert checkout.git("status", "--porcelain").split() in ([], ["??", "dvc.lock"], ["M", "dvc.lock"])


@pytest.mark.whole_run
def test_a_refusal_is_a_result_and_nothing_is_published(checkout, first):
    before = checkout.srpo("releases").stdout
    refused = checkout.srpo("align", "--set", "gate.rules.style_gained.margin=2", check=False)
    assert refused.returncode == 3
    assert "verdict  refused" in refused.stdout
    assert "release  none" in refused.stdout
    report = checkout.path / next(
        line.split()[1] for line in refused.stdout.splitlines() if line.startswith("report")
    )
    assert report.match(".srpo/runs/*/report.html"), "another run's settings: the checkout's own copy stays"
    assert '<td class="name">bf16</td>' not in report.read_text()
    assert '<td class="name">train</td>' in report.read_text()
    assert "Traceback" not in refused.stderr
    assert checkout.srpo("releases").stdout == before
    assert checkout.steps_trained() == [4], "a threshold of the gate must not retrain"


@pytest.mark.pipeline
def test_a_forced_run_trains_from_step_0_and_gives_the_same_bytes(checkout, first):
    before, trained = checkout.reference, checkout.steps_trained()
    checkout.run("dvc", "repro", "--force", "--single-item", *REPRODUCED)
    assert checkout.steps_trained() == [*trained, 4]
    after = checkout.outputs()
    assert {stage: after[stage] for stage in REPRODUCED} == {stage: before[stage] for stage in REPRODUCED}


@pytest.mark.distributed
def test_two_workers_learn_what_one_learns(checkout, first):
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
    # in float32, whose roundings AdamW enlarges; tests/training/test_sharded_training.py compares over 20 steps in float64
    assert relative < 1e-5
    assert apart[widest] < 1e-4 * alone[widest].norm(), widest


@pytest.fixture
def cluster(checkout):
    """A Ray of two CPUs that was started apart from any run, in another directory, and its address."""
    environment = {name: value for name, value in checkout.environment.items() if name != "PYTHONPATH"}
    with ray_head(environment, cpus=2) as address:
        yield address


@pytest.mark.distributed
def test_a_cluster_learns_what_a_run_on_its_own_learns_by_the_runs_own_code(checkout, first, cluster):
    checkout.run(
        *["dvc", "repro", "--force", "--single-item", "train"], RAY_ADDRESS=cluster, RAY_AUTH_MODE="disabled"
    )
    assert checkout.outputs()["train"] == checkout.reference["train"]


def wait_for(found, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"nothing after {seconds} s")


def commands_of(path):
    """The command lines of living processes that work in a directory."""
    found = []
    for process in psutil.process_iter():
        try:  # one may end between the list and the look at it
            words, cwd = process.cmdline(), process.cwd()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(path) in word for word in (cwd, *words)):
            found.append(words)
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A checkout whose run was killed with kill -9 after its first checkpoint, in the middle of training."""
    checkout = short_pipeline.make_checkout(tmp_path_factory.mktemp("killed") / "checkout")
    resume = checkout.path / ".srpo/resume"
    with subprocess.Popen(
        checkout.command("align", "--set", "train.steps=8"),
        cwd=checkout.path,
        env=checkout.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: list(resume.glob("train-*/step-000002")), 240)
        os.kill(process.pid, signal.SIGKILL)
    return checkout


def is_prefects_server(command):
    return any("prefect.server" in word for word in command)


@pytest.mark.pipeline
def test_no_stage_outlives_a_killed_run(killed):
    """Prefect's own server may; the next run ends it."""
    wait_for(lambda: all(is_prefects_server(command) for command in commands_of(killed.path)), 30)


@pytest.mark.pipeline
def test_the_same_command_after_a_kill_ends_well_and_trains_only_what_was_missing(killed):
    done = killed.srpo("align", "--set", "train.steps=8")
    assert "verdict  passed" in done.stdout
    (trained,) = killed.steps_trained()
    assert 1 <= trained <= 6
    assert not list((killed.path / ".srpo/resume").glob("train-*/"))
    wait_for(lambda: not commands_of(killed.path), 30)
