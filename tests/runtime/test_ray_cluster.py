import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srpo_core
from srpo_core.config import load_settings
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime import ray_cluster as cluster

TINY = Path(__file__).resolve().parents[2] / "profiles/tiny.yaml"


def on_gpus(wanted):
    return load_settings(TINY).resources.model_copy(update={"use_gpu": wanted})


@pytest.mark.parametrize("address", ["cluster", "http://cluster:8265", "ray://cluster:10001", ":6379"])
def test_an_invalid_address_is_refused_with_the_expected_form(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="write host:port"):
        cluster.require_cluster()


def test_a_cluster_that_does_not_answer_fails_immediately(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        SrpoError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1 .*ray start --head"
    ):
        cluster.require_cluster()


def test_a_cluster_whose_head_starts_again_is_waited_for(monkeypatch):
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(SrpoError, match="no Ray cluster answers"):
            cluster.require_cluster()
        monkeypatch.setattr(cluster.time, "sleep", lambda _: head.listen())  # between two attempts
        cluster.require_cluster(seconds=600)


def test_several_machines_require_srpo_shared(monkeypatch, tmp_path):
    monkeypatch.delenv("SRPO_SHARED", raising=False)
    cluster.require_shared_files(1)
    with pytest.raises(
        ConfigError, match="has 3 machines and no shared files are configured: set SRPO_SHARED"
    ):
        cluster.require_shared_files(3)
    monkeypatch.setenv("SRPO_SHARED", str(tmp_path))
    cluster.require_shared_files(3)


def test_a_missing_gpu_is_refused_if_the_settings_ask_for_one(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cluster.local_device(on_gpus(False)) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"resources\.use_gpu is true and this machine has no GPU"):
        cluster.local_device(on_gpus(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cluster.local_device(on_gpus(True)) == torch.device("cuda")


def test_a_driver_machine_without_a_gpu_warns_that_it_uses_its_cpu(monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert cluster.local_device(on_gpus(True)) == torch.device("cpu")
    assert "this machine has no GPU; its CPU computes what is not sent to the cluster" in caplog.text


@pytest.mark.parametrize(
    ("machines", "workers", "use_gpu", "threads", "expected"),
    [
        ([{"CPU": 2}], 1, False, 4, 2),  # a laptop
        ([{"CPU": 2}], 2, False, 4, 1),
        ([{"CPU": 1}], 2, False, 4, 1),  # one of the two starts
        ([{"CPU": 64}], 2, False, 4, 4),
        ([{"CPU": 8}, {"CPU": 8}], 3, False, 6, 4),  # 8 CPUs have room for two workers of 4, not of 5
        ([{"CPU": 64, "GPU": 8}] * 4, 32, True, 4, 4),
        ([{"CPU": 16, "GPU": 8}] * 4, 32, True, 4, 2),
        ([{"CPU": 16}, {"CPU": 16, "GPU": 8}], 8, True, 4, 2),  # CPUs beside no GPU do not help
        ([{"CPU": 8}], 4, True, 4, 1),  # no GPU yet
        ([], 4, False, 4, 1),
    ],
)
def test_a_worker_reserves_its_threads_unless_fewer_workers_would_fit(
    machines, workers, use_gpu, threads, expected
):
    assert cluster.reserved_cpus(machines, workers, use_gpu=use_gpu, threads=threads) == expected


ON_A_CLUSTER = """
import json
from hashlib import sha256
from pathlib import Path

import ray

from srpo_core.runtime.ray_cluster import ray_for


def code():
    import srpo_core

    root = Path(srpo_core.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return str(root), {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in files}


with ray_for(WORKERS, least=LEAST, use_gpu=USE_GPU, threads=4) as cpus:
    assert cpus == 1, "the cluster has one CPU, or no GPU yet"
    print(json.dumps([code(), None if USE_GPU else ray.get(ray.remote(code).remote(), timeout=300)]))
"""


def run_on_a_cluster(address, workers, *, least, use_gpu):
    """Return a driver's log, its code and a worker's code; in a new process, as Ray reads RAY_AUTH_MODE only once."""
    values = {"WORKERS": workers, "LEAST": least, "USE_GPU": use_gpu}
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + ON_A_CLUSTER
    driver = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert driver.returncode == 0, driver.stderr
    return driver.stderr, *json.loads(driver.stdout)


@pytest.mark.pipeline
def test_workers_of_a_cluster_run_a_copy_of_the_drivers_code(one_cpu_cluster):
    log, (own, digests), (root, files) = run_on_a_cluster(one_cpu_cluster, 2, least=1, use_gpu=False)
    assert "waiting" not in log
    log, *_ = run_on_a_cluster(one_cpu_cluster, 32, least=8, use_gpu=True)
    assert "the cluster has 0 GPUs, and at least 8 are needed: waiting until it has them" in log
    assert own == str(Path(srpo_core.__file__).parent)
    assert not root.startswith(own)
    assert files == digests
