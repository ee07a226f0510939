import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from srpo_core.errors import ConfigError, DivergenceError, SrpoError
from srpo_core.models import files_to_load
from srpo_core.runtime.ray_sessions import unused_sessions
from srpo_core.runtime.shared_files import COMPLETE
from srpo_core.training import export, launch
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

WORDS = {"prompts": 5, "wanted": {"Ink": 0}, "unwanted": {"3D": 3}}


def with_resources(job, **changes):
    return replace(job, resources=job.resources.model_copy(update=changes))


def test_requesting_more_gpus_than_this_machine_has_is_refused(job):
    import torch

    more = torch.cuda.device_count() + 1
    wanted = with_resources(job, train_workers=more, min_train_workers=more, use_gpu=True)
    with pytest.raises(ConfigError, match=r"requires \d+ GPUs, and this machine has \d+"):
        launch.fit(wanted)


def test_a_worker_asks_ray_for_its_cpus_and_its_gpu(job):
    alone = launch.scaling(with_resources(job, train_workers=2, min_train_workers=2).resources, cpus=3)
    assert (alone.num_workers, alone._resources_per_worker_not_none) == (2, {"CPU": 3})
    wanted = with_resources(job, train_workers=8, min_train_workers=4, use_gpu=True).resources
    elastic = launch.scaling(wanted, cpus=4)
    assert (elastic.num_workers, elastic._resources_per_worker_not_none) == ((4, 8), {"CPU": 4, "GPU": 1})


def test_a_cluster_that_does_not_answer_is_an_immediate_error(job, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SrpoError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1"):
        launch.fit(job)


@pytest.mark.pipeline
def test_a_diverging_run_names_its_step_and_keeps_earlier_checkpoints(job):
    optimizer = job.train.optimizer.model_copy(update={"learning_rate": 1e30})
    diverging = job.train.model_copy(update={"optimizer": optimizer, "checkpoint_every": 1})
    sessions = set(unused_sessions())
    with pytest.raises(DivergenceError, match=r"step \d+: .*gradient of .+ is not finite") as caught:
        launch.fit(replace(job, train=diverging))
    left = {path.name.rpartition("_")[2] for path in set(unused_sessions()) - sessions}
    assert str(os.getpid()) in left, "srpo clean finds the directory that this Ray has left"
    (named,) = re.findall(r"step (\d+):", str(caught.value))
    kept = newest_checkpoint(job.state, checkpoint_steps(diverging))
    assert kept.step == int(named) - 1
    whole = read_whole(kept.location.path / "weights")
    assert all(tensor.isfinite().all() for tensor in whole.values())


def test_the_run_fails_after_a_bounded_number_of_failed_starts(job, monkeypatch, caplog):
    started = []

    def fail(attempt, _):
        started.append(attempt)
        raise launch._GroupFailedError("step 8 stalled for 61 s at rank 1")

    monkeypatch.setattr(launch, "_fit_once", fail)
    with pytest.raises(SrpoError, match=r"^training failed 3 times: step 8 stalled for 61 s at rank 1$"):
        launch.fit(job)
    assert [attempt.resume for attempt in started] == [0, 0, 0]
    assert len({attempt.attempt for attempt in started}) == 3, "each attempt writes its own files"
    assert [record.getMessage() for record in caplog.records] == [
        f"step 8 stalled for 61 s at rank 1; restarting the workers, {n} of 2 times" for n in (1, 2)
    ]


def test_a_run_with_all_steps_done_starts_no_worker(job, monkeypatch):
    import torch

    Worker(job, rank=0, world=1, device=torch.device("cpu")).run()
    monkeypatch.setattr(launch, "_fit_once", None)
    launch.fit(job)


def test_with_shared_files_an_absolute_path_is_refused(job, tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_SHARED", str(tmp_path / "shared"))
    with pytest.raises(ConfigError, match=r"/weights: with SRPO_SHARED a path must be relative"):
        launch.share_inputs(tmp_path / "train-abc", Path("/weights"))


def test_only_inputs_that_the_fingerprint_covers_are_shared(tiny_project, tmp_path, monkeypatch):
    """Other embeddings may change under the same directory name, and would then fail the digest check."""
    monkeypatch.chdir(tiny_project)
    monkeypatch.setenv("SRPO_SHARED", str(tmp_path / "shared"))
    inputs, digests, _ = launch.share_inputs(tmp_path / "train-abc", Path("assets/tiny/family/reward"))
    embeddings = [name for name in digests if name.startswith("runs/embed")]
    assert embeddings == ["runs/embed/train.safetensors", "runs/embed/alarm.safetensors"]
    assert {name for name in inputs.files() if name != COMPLETE} == set(digests)


@pytest.mark.pipeline
@pytest.mark.s3
def test_a_cluster_that_is_too_small_and_shares_only_object_storage_learns_the_same_weights(
    job, bucket, monkeypatch, tmp_path, one_cpu_cluster
):
    """One CPU for one to two workers. That both learn the same is tested in test_sharded_training.py.

    The driver is a new process, since Ray reads RAY_AUTH_MODE only once.
    """
    import torch
    from safetensors.torch import load_file

    Worker(job, rank=0, world=1, device=torch.device("cpu")).run()
    here = newest_checkpoint(job.state, count(2, 2))
    monkeypatch.setenv("SRPO_SHARED", f"s3://{bucket}/srpo")
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    paths = (*files_to_load(job.model), Path(job.rewards[0].path), Path(job.select_judge.path))
    inputs, digests, state = launch.share_inputs(tmp_path / "train-abc", *paths)
    far = replace(job, inputs=inputs, digests=digests, state=state, attempt="")
    far = with_resources(far, train_workers=2, min_train_workers=1)
    _fit_on_a_cluster(far, tmp_path / "job.pickle", one_cpu_cluster)
    description = json.loads((state / "step-000004/state.json").read_text())
    assert (description["step"], description["world"]) == (4, 1)
    export.export(far, WORDS)
    exported = load_file("runs/train/checkpoints/step-000004/diffusion_pytorch_model.safetensors")
    expected = read_whole(here.location.path / "weights")
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    assert len(list(Path("runs/train/samples").glob("*.png"))) == 2


def _fit_on_a_cluster(job, file, address):
    file.write_bytes(pickle.dumps(job))
    code = "import pickle, sys; from srpo_core.training.launch import fit; fit(pickle.load(open(sys.argv[1], 'rb')))"
    subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        check=True,
    )
