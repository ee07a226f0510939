"""A disk that is full when a checkpoint is written ends training in one line, and the same command resumes later."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import ranks

from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.steps import checkpoint_steps
from srpo_core.weights.shards import read_whole

pytestmark = pytest.mark.nightly  # starts Ray twice

DRIVER = '''
import os, pickle, sys
from srpo_core.errors import SrpoError
from srpo_core.runtime.processes import OWNER, owner_mark
from srpo_core.training.launch import fit
os.environ[OWNER] = owner_mark()
def filling(job):
    """Run a worker whose disk is full when it begins the checkpoint of step 4, unless that was so before."""
    from srpo_core.training import worker as trainer
    from srpo_core.training.checkpoint_writer import CheckpointWriter
    write, filler = CheckpointWriter._write, job.state.path / "filler"
    def on_a_full_disk(writer, tensors, description):
        if description["step"] == 4 and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        write(writer, tensors, description)
    CheckpointWriter._write = on_a_full_disk
    trainer.train_worker(job)
job = pickle.load(open(sys.argv[1], "rb"))
os.chdir(job.inputs.path)
try:
    fit(job, worker=filling)
except SrpoError as error:
    print(error)
    sys.exit(1)
'''


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def weights(job):
    found = newest_checkpoint(job.state, checkpoint_steps(job.train))
    whole = read_whole(found.location.path / "weights")
    return found.step, {name: tensor.numpy().tobytes() for name, tensor in whole.items()}


def test_a_disk_that_is_full_during_a_checkpoint_ends_training_in_one_line_and_a_retry_gives_the_same_weights(
    job, tmp_path, small_disk
):
    short = job.train.rollout.model_copy(update={"num_inference_steps": 1})
    alone = ranks.changed(job, tmp_path, "alone", steps=4, batch_size=2, sample_prompts=1, rollout=short)
    ranks.train(alone, 1)
    state = small_disk / "train"
    state.mkdir()
    full = replace(alone, state=Location.of(state), attempt="", resume=0)
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(full))

    def run():
        return subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path / "job.pickle")],
            env={**os.environ, "SRPO_HOME": str(tmp_path / "home")}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    failed = run()
    assert failed.returncode == 1, failed.stderr[-3000:]
    (line,) = failed.stdout.splitlines()
    assert line.startswith(f"the disk of {state} is full and has no checkpoint of step 4: free space there")
    assert "restarting the workers" not in failed.stderr
    assert weights(full)[0] == 2, "the checkpoint before it is whole"
    assert not list(state.glob(".*.part")), "what was written of it takes no space"
    (state / "filler").write_bytes(b"")  # space is free again
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(full) == weights(alone)
    logged = [json.loads(line)["step"] for line in (state / "progress.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 3, 4], "steps 3 and 4 were trained again, and 1 and 2 were not"
