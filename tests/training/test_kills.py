"""Training that is killed by `kill -9` and resumed ends with the same bits as an uninterrupted run.

Each test runs the `fit` of the stage with two workers on a local Ray.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import ranks
from living import command_line, ended
from ray_head import ray_head

from srpo_core.runtime.processes import OWNER, end_leftovers
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.steps import checkpoint_steps
from srpo_core.weights.shards import read_whole

pytestmark = pytest.mark.pipeline

STEPS = 6
PATIENCE = 1200  # seconds, on a busy machine
DRIVER = '''
import os, pickle, sys
from srpo_core.runtime.processes import OWNER, end_leftovers, owner_mark
from srpo_core.training.launch import fit
end_leftovers()  # like the stage
os.environ[OWNER] = owner_mark()
def stuck(job):
    """Run a worker that stalls on rank 1 in the fourth step."""
    import time
    from srpo_core.training import worker as trainer
    step = trainer.Worker.step
    def standing(worker, number):
        if (worker.rank, number) == (1, 4):
            time.sleep(3600)
        return step(worker, number)
    trainer.Worker.step = standing
    trainer.train_worker(job)
def writing(job):
    """Run a worker that never finishes its second checkpoint the first time."""
    import time
    from srpo_core.training import checkpoint_writer as checkpoint
    from srpo_core.training import worker as trainer
    commit = checkpoint.CheckpointWriter._commit
    def standing(writer, staging, description):
        once = job.state.path / "stalled-once"
        if description["step"] == 4 and not once.exists():
            once.touch()
            time.sleep(3600)
        commit(writer, staging, description)
    checkpoint.CheckpointWriter._commit = standing
    trainer.train_worker(job)
job = pickle.load(open(sys.argv[1], "rb"))
os.chdir(job.inputs.path)
replacements = {"stuck": stuck, "writing": writing}
fit(job, **{"worker": replacements[word] for word in sys.argv[2:]})
'''


class Run:
    """A training run with the driver in a separate process."""

    started: ClassVar[list["Run"]] = []

    def __init__(self, job, tmp_path):
        self.job, self.file, self.log = job, tmp_path / "job.pickle", tmp_path / "driver.log"
        self.file.write_bytes(pickle.dumps(job))
        self.home = tmp_path / "home"

    def start(self, *words, **variables):
        environment = {
            **os.environ,
            **variables,
            "SRPO_HOME": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        with self.log.open("a") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(self.file), *words],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.started.append(self)
        return self

    def finish(self):
        assert self.driver.wait(PATIENCE) == 0, self.log.read_text()[-3000:]

    def wait_for(self, found):
        until = time.monotonic() + PATIENCE
        while not (result := found()):
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            assert self.driver.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return result

    def steps_logged(self):
        progress = self.job.state.path / "progress.jsonl"
        return (
            [json.loads(line)["step"] for line in progress.read_text().splitlines()]
            if progress.exists()
            else []
        )

    def restarts(self):
        return [line for line in self.log.read_text().splitlines() if "restarting the workers" in line]

    def processes(self):
        return psutil.Process(self.driver.pid).children(recursive=True)

    def workers(self):
        return [
            process for process in self.processes() if "RayTrainWorker" in " ".join(command_line(process))
        ]

    def weights(self):
        found = newest_checkpoint(self.job.state, checkpoint_steps(self.job.train))
        assert found.step == STEPS
        whole = read_whole(found.location.path / "weights")
        return {name: tensor.numpy().tobytes() for name, tensor in whole.items()}


def kill(processes):
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:  # it ended with its parent
            continue


@pytest.fixture(autouse=True)
def _end_processes_of_a_failed_test():
    yield
    for run in Run.started:
        if run.driver.poll() is None:
            kill([*run.processes(), psutil.Process(run.driver.pid)])
            run.driver.wait()
    Run.started.clear()
    end_leftovers()


def settings(job, tmp_path, name):
    rollout = job.train.rollout.model_copy(update={"num_inference_steps": 1})
    resources = {"train_workers": 2, "min_train_workers": 2}
    small = ranks.changed(
        job,
        tmp_path,
        name,
        resources=resources,
        steps=STEPS,
        batch_size=2,
        sample_prompts=1,
        rollout=rollout,
    )
    return replace(small, attempt="", resume=0)


@pytest.fixture
def expected(job, tmp_path):
    """The weights of an uninterrupted run."""
    alone = settings(job, tmp_path, "alone")
    ranks.train(alone, 2)
    return Run(alone, tmp_path).weights()


def test_a_run_that_stalls_and_loses_its_session_a_worker_and_its_driver_gives_the_same_weights(
    job, tmp_path, expected
):
    job = settings(job, tmp_path, "killed")
    stalled = Run(with_watchdog(job), tmp_path).start("stuck")  # no start of this driver ends step 4
    _wait_until_the_stalled_workers_restart(stalled)
    _kill_the_whole_session_after_a_checkpoint(stalled)
    run = Run(job, tmp_path)
    _kill_a_worker_during_a_checkpoint_write(run.start("writing"))
    children = _kill_the_driver_after_the_next_checkpoint(run)
    run.start().finish()
    assert ended(children, 120), "Ray's processes take longer to end; the retry ends the rest"
    assert run.weights() == expected
    logged = run.steps_logged()
    # the first workers stall in step 4, the session is lost in step 4 too, a worker during the checkpoint after it,
    # the driver in step 5 or 6
    assert logged[:9] == [1, 2, 3, 3, 3, 4, 3, 4, 5]
    assert logged[9:] in ([5, 6], [6, 5, 6], [6])


def with_watchdog(job):
    """A step takes a second or two; the watchdog waits a minute, so that no slow step counts as a stall."""
    stall = job.resources.stall.model_copy(update={"factor": 3.0, "least_seconds": 60.0})
    return replace(job, resources=job.resources.model_copy(update={"stall": stall}))


def _wait_until_the_stalled_workers_restart(run):
    run.wait_for(lambda: run.steps_logged() == [1, 2, 3, 3])
    (line,) = run.restarts()
    assert line.startswith("step 4 stalled for ")
    assert " at rank 1;" in line or " at rank 1 in " in line
    assert line.endswith("1 of 2 times")


def _kill_the_whole_session_after_a_checkpoint(run):
    everything = [*run.processes(), psutil.Process(run.driver.pid)]
    dashboard = [process for process in everything if "ray-dashboard" in " ".join(command_line(process))]
    assert not dashboard, "a local Ray serves no dashboard, which would have no authentication"
    kill(everything)
    run.driver.wait()
    assert ended(everything, 120)
    assert not (run.job.state.path / "step-000004").exists()


def _kill_a_worker_during_a_checkpoint_write(run):
    state = run.job.state.path
    run.wait_for((state / "stalled-once").exists)
    (partial,) = state.glob(".step-000004.*.part")
    workers = run.workers()
    assert len(workers) == 2
    kill(workers[:1])
    assert ended(workers, 120), "the worker that waits for it ends too"
    assert partial.exists(), "the write was not finished"
    assert not (state / "step-000004").exists()
    run.wait_for(lambda: 5 in run.steps_logged())
    assert not partial.exists()
    assert run.restarts()[1].endswith("1 of 2 times")


def _kill_the_driver_after_the_next_checkpoint(run):
    children, workers = run.processes(), run.workers()
    assert len(workers) == 2
    run.driver.kill()
    run.driver.wait()
    assert ended(workers, 120), "the workers end with the driver"
    return children


@pytest.mark.nightly  # starts two clusters, and waits a minute for the first one to come back
def test_a_run_whose_ray_head_is_killed_ends_and_resumes_on_the_next_head(job, tmp_path):
    resources = {"train_workers": 1, "min_train_workers": 1}
    run = Run(
        replace(settings(job, tmp_path, "head"), resources=job.resources.model_copy(update=resources)),
        tmp_path,
    )
    with ray_head(os.environ, cpus=2) as address:
        run.start(RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
        run.wait_for(lambda: 3 in run.steps_logged())
        kill(processes_of_head(address))
        assert run.driver.wait(PATIENCE) != 0
    assert len(run.restarts()) == 1
    assert f"SrpoError: no Ray cluster answers at RAY_ADDRESS={address}" in run.log.read_text()
    before = run.steps_logged()
    with ray_head(os.environ, cpus=2) as address:
        run.start(RAY_ADDRESS=address, RAY_AUTH_MODE="disabled").finish()
    resumed = run.steps_logged()[len(before) :]
    assert resumed == list(range(resumed[0], STEPS + 1))
    assert 3 <= resumed[0] <= before[-1] + 1, "it resumes at a checkpoint"
    assert run.weights()


def processes_of_head(address):
    """Return the head that this process has started, and all below it."""
    port = f"--port={address.split(':')[1]}"
    (head,) = [child for child in psutil.Process().children() if port in command_line(child)]
    return [head, *head.children(recursive=True)]


@pytest.mark.serial  # a run of another test may end the same process
def test_a_retry_ends_the_processes_of_a_killed_run(tmp_path):
    """They are recognized by the mark of an owner that has ended, which all processes of the stage inherit."""
    script = (
        "import os, subprocess, sys; from srpo_core.runtime.processes import OWNER, owner_mark;"
        f"os.environ[{OWNER!r}] = owner_mark();"
        "nothing = subprocess.DEVNULL;"
        "left = subprocess.Popen(['sleep', '300'], start_new_session=True, stdout=nothing, stderr=nothing);"
        "print(left.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    left = psutil.Process(int(done.stdout))
    assert left.is_running()
    assert end_leftovers() >= 1
    assert ended([left], 5)
