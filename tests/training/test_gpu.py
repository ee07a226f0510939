"""Train the tiny model on a GPU and compare with the CPU: `make gpu-smoke`, with test_compute_settings.py."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srpo_core.config import load_settings
from srpo_core.training.worker import Worker

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
STEPS = 5


@pytest.fixture(scope="session")
def gpu():
    """Return the name of the GPU; without one the test fails before anything is loaded."""
    if not torch.cuda.is_available():
        pytest.fail("this machine has no GPU that torch can use: see 'srpo doctor'", pytrace=False)
    return torch.cuda.get_device_name()


def train(job, device):
    """Return metrics and seconds of each step, without loading; the device is synchronized before and after."""
    worker = Worker(job, rank=0, world=1, device=torch.device(device))
    metrics, seconds = [], []
    for step in range(1, STEPS + 1):
        wait_for(device)
        started = time.perf_counter()
        metrics.append(worker.step(step))
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return metrics, seconds


def wait_for(device):
    if device == "cuda":
        torch.cuda.synchronize()


def test_five_steps_on_a_gpu_agree_with_the_cpu(gpu, job, capsys):
    profile = load_settings(ROOT / "profiles/tiny.yaml").train
    job = replace(job, train=profile.model_copy(update={"steps": STEPS}))
    torch.cuda.reset_peak_memory_stats()
    on_gpu, seconds = train(job, "cuda")
    memory = torch.cuda.max_memory_allocated() / 1e9
    on_cpu, cpu_seconds = train(job, "cpu")
    with capsys.disabled():
        print(
            f"\n{gpu}: {seconds[0]:.2f} s the first step, {sum(seconds[1:]) / (STEPS - 1):.2f} s the others "
            f"(CPU {sum(cpu_seconds[1:]) / (STEPS - 1):.2f} s), {memory:.2f} GB at most"
        )
        for step, (ours, theirs) in enumerate(zip(on_gpu, on_cpu, strict=True), start=1):
            print(f"step {step}: loss {ours['loss']:.5f} (CPU {theirs['loss']:.5f})")
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
