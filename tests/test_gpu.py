"""For the first owner of a GPU: `make gpu-smoke` trains the tiny model on it and compares with the CPU."""

import time

import pytest
import torch

from srpo_core.trainer import Worker

pytestmark = pytest.mark.gpu
STEPS = 5


def train(job, device):
    worker = Worker(job, rank=0, world=1, device=torch.device(device))
    return [worker.step(step) for step in range(1, STEPS + 1)]


def test_five_steps_on_a_gpu_agree_with_the_cpu(job, capsys):
    if not torch.cuda.is_available():
        pytest.fail("this machine has no GPU that torch can use: see 'srpo doctor'")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    started = time.perf_counter()
    on_gpu = train(job, "cuda")
    seconds = time.perf_counter() - started
    on_cpu = train(job, "cpu")
    with capsys.disabled():
        memory = torch.cuda.max_memory_allocated() / 1e9
        print(f"\n{torch.cuda.get_device_name()}: {seconds / STEPS:.2f} s per step, {memory:.2f} GB at most")
        for step, (gpu, cpu) in enumerate(zip(on_gpu, on_cpu, strict=True), start=1):
            print(f"step {step}: loss {gpu['loss']:.5f} (CPU {cpu['loss']:.5f})")
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-3)
