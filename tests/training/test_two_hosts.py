"""Training across two hosts that share no disk: a link that is cut, a host that dies, and the same weights.

Each host is a network namespace of this machine, with a temporary directory of its own. A third one serves S3.
"""

import os
import pickle
import re
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import ranks
from conftest import ROOT, s3_variables
from two_hosts import hosts, missing_for_hosts

from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

pytestmark = [pytest.mark.hosts]

STEPS, EVERY, CUT_SECONDS, PATIENCE = 40, 5, 30, 900
S3_PORT, RAY_PORT = 5000, 6379
# By default a node counts as dead when it has not answered five times, after about half a minute.
PATIENT_RAY = {"RAY_health_check_failure_threshold": "15"}
DRIVER = """
import logging, os, pickle, sys
import boto3
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from srpo_core.training import export, launch
from srpo_core.training.job import PROGRESS
from srpo_core.runtime.live_loggers import live_loggers
from srpo_core.training.step_log import log_steps
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
boto3.client("s3").create_bucket(Bucket="runs")
with open(sys.argv[1], "rb") as file:
    job = pickle.load(file)
os.chdir(job.inputs.path)
paths = map(Path, (job.model.path, *(one.path for one in job.rewards), job.select_judge.path))
inputs, digests, state = launch.share_inputs(Path(sys.argv[2]), *paths)
job = replace(job, inputs=inputs, digests=digests, state=state, attempt="")
with live_loggers([], "run", {}) as none, log_steps(state / PROGRESS, job.train.steps, none):
    launch.fit(job)
os.chdir(sys.argv[2])
export.export(job, {})
"""


class Log:
    """The log of a process, which must not end before something is found in it."""

    def __init__(self, path):
        self.path = path

    def find(self, pattern):
        return re.findall(pattern, self.path.read_text()) if self.path.exists() else []

    def wait_for(self, pattern, process, *, after=0):
        """Wait until the pattern has been found more often than `after`; return what was found."""
        until = time.monotonic() + PATIENCE
        while len(found := self.find(pattern)) <= after:
            assert time.monotonic() < until, self.path.read_text()[-3000:]
            assert process.poll() is None, self.path.read_text()[-3000:]
            time.sleep(0.2)
        return found


@pytest.fixture
def network():
    """Three hosts: one with the driver and Ray's head, one with a worker, one with the store."""
    if reason := missing_for_hosts():
        pytest.skip(reason)
    with hosts("head", "worker", "store") as made:
        yield made


def environment(store, **more):
    """Return the variables of a host that does not find this checkout, with the store's S3."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        **own,
        **s3_variables(f"http://{store.address}:{S3_PORT}"),
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        **PATIENT_RAY,
        "SRPO_SHARED": "s3://runs/srpo",
        **more,
    }


def start_cluster(head, worker, store, tmp_path, base):
    """Start S3, Ray's head and a second node; both nodes have one CPU, and the second one nothing of this disk."""
    quiet = {"environment": environment(store), "log": tmp_path / "store.log"}
    store.start([sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3_PORT)], **quiet)
    common = ["--block", "--num-cpus=1", "--object-store-memory=200000000"]
    address, log = f"{head.address}:{RAY_PORT}", Log(tmp_path / "head.log")
    first = ["ray", "start", "--head", f"--port={RAY_PORT}", "--include-dashboard=false", *common]
    started = head.start([*first, f"--node-ip-address={head.address}"], environment(store), log.path)
    log.wait_for("Ray runtime started", started)
    second = ["ray", "start", f"--address={address}", f"--node-ip-address={worker.address}", *common]
    log = Log(tmp_path / "worker.log")
    hidden = [base, Path("/tmp/ray")]
    started = worker.start(second, environment(store, TMPDIR=str(base)), log.path, hidden=hidden)
    log.wait_for("Ray runtime started", started)
    return address


def test_two_hosts_that_share_no_disk_survive_a_cut_link_and_a_dead_host(
    job, network, tmp_path, tmp_path_factory
):
    import torch
    from safetensors.torch import load_file

    head, worker, store = network
    train = job.train.model_copy(update={"steps": STEPS, "checkpoint_every": EVERY})
    resources = job.resources.model_copy(update={"train_workers": 2, "min_train_workers": 1})
    job = replace(job, train=train, resources=resources)
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    address = start_cluster(head, worker, store, tmp_path, tmp_path_factory.getbasetemp())
    (run := tmp_path / "train-run").mkdir()
    (run / "assets").symlink_to(ROOT / "assets")
    log = Log(tmp_path / "driver.log")
    driver = head.start(
        [sys.executable, "-c", DRIVER, str(tmp_path / "job.pickle"), str(run)],
        os.environ | environment(store, RAY_ADDRESS=address, SRPO_HOME=str(tmp_path / "home")),
        log.path,
    )
    log.wait_for(r"step 3 of", driver)
    worker.set_link(up=False)
    time.sleep(CUT_SECONDS)
    worker.set_link(up=True)
    log.wait_for(r"step 12 of", driver)
    assert not log.find("restarting"), log.path.read_text()
    worker.kill()
    assert driver.wait(PATIENCE) == 0, log.path.read_text()[-3000:]
    assert len(log.find("restarting the workers, 1 of 2 times")) == 1
    steps = [int(step) for step in log.find(r"step (\d+) of")]
    (resumed,) = [step for before, step in pairwise(steps) if step <= before]
    assert resumed > EVERY, "the run resumes from a checkpoint that both hosts have written"

    path = run / f"runs/train/checkpoints/step-{STEPS:06d}/diffusion_pytorch_model.safetensors"
    together, expected = load_file(path), without_faults(job, first=resumed - 1)
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[name], tensor) for name, tensor in expected.items())


def without_faults(job, *, first):
    """Train the first steps with two workers and the others with one, on this machine and without Ray."""
    import torch

    ranks.train(replace(job, train=job.train.model_copy(update={"steps": first})), 2)
    Worker(replace(job, resume=first), rank=0, world=1, device=torch.device("cpu")).run()
    return read_whole(newest_checkpoint(job.state, [STEPS]).location.path / "weights")
