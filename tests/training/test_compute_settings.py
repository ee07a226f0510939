"""The tiny model with every compute setting of the presets for FLUX.1-dev, on the CPU and, by `make gpu-smoke`, on a GPU.

Both run the same code, so that nothing but the device is new to the first owner of a GPU.
"""

import signal
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import ranks
import torch
from torch import distributed as dist

from srpo_core.config import ComputeSettings, LoraSettings, OptimizerSettings, load_settings
from srpo_core.errors import ConfigError
from srpo_core.fidelity.image_distance import psnr
from srpo_core.generation.images import ImageSet, from_8_bits, generate_pixels
from srpo_core.models import LoadedBase, load_base
from srpo_core.models.attention import DEFAULT
from srpo_core.models.embeddings import read_embeddings
from srpo_core.models.lora import add_lora, write_lora
from srpo_core.models.offloading import pinned_size
from srpo_core.models.sharding import blocks
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.samples import generate_samples
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
PRESETS = sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "tiny")
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
SHORT = {"steps": 2, "batch_size": 2, "checkpoint_every": 2, "sample_prompts": 1}
BFLOAT16 = 0.03  # of a loss of about 0.7, as in test_sharded_training.py
FOUR_BITS = 0.1
SAME_IMAGE, OTHER_IMAGE = 20, 15  # dB between images of one model in float32 and bfloat16; of two models
cpu, cuda = (
    pytest.param("cpu", marks=pytest.mark.pipeline),
    pytest.param("cuda", marks=pytest.mark.gpu),
)


def values_of(settings, field):
    """Return the allowed values of a setting, so that a new one is tested without an edit here."""
    return get_args(settings.model_fields[field].annotation)


@pytest.fixture
def device(request):
    """Return the device; without a GPU the tests for one fail before anything is loaded."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("this machine has no GPU that torch can use: see 'srpo doctor'", pytrace=False)
    return torch.device(request.param)


@pytest.fixture
def world_of_one(device, tmp_path):
    """Open a process group of one rank, as FSDP2 needs it: NCCL on a GPU."""
    with group_of_one(device, tmp_path):
        yield


@contextmanager
def group_of_one(device, directory):
    dist.init_process_group(
        BACKENDS[device.type], init_method=f"file://{directory}/meeting", rank=0, world_size=1
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def short(job, tmp_path, name, *, compute=None, resources=None, **train):
    """Return a job of two steps with other settings and its own state directory."""
    changed = {"compute": job.train.compute.model_copy(update=compute or {}), **train}
    rollout = job.train.rollout.model_copy(update={"num_inference_steps": 2})
    return ranks.changed(job, tmp_path, name, resources=resources, **{**SHORT, "rollout": rollout, **changed})


def with_preset(job, tmp_path, preset):
    """Return the short job with all settings of a preset that concern computing."""
    settings = load_settings(PROFILES / f"{preset}.yaml")
    train, resources = settings.train, settings.resources
    frozen = {"frozen": train.lora.frozen}
    return short(
        job,
        tmp_path,
        preset,
        compute=train.compute.model_dump(),
        resources={"shard": resources.shard, "async_checkpoints": resources.async_checkpoints},
        tune=train.tune,
        lora=job.train.lora.model_copy(update=frozen),
        micro_batch_size=train.micro_batch_size,
        batch_branches=train.batch_branches,
        optimizer=job.train.optimizer.model_copy(update={"kind": train.optimizer.kind}),
    )


def trained(job, device, capsys=None):
    """Train a job; return its worker. On a GPU, print its time and memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    worker = Worker(job, rank=0, world=1, device=device)
    worker.run()
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
        with capsys.disabled():
            print(f"\n{job.state.name}: {time.perf_counter() - started:.1f} s, {memory:.2f} GB at most")
    return worker


def assert_close(worker, reference, *, tolerance):
    """Require the first step of float32 on the CPU up to rounding, and a whole checkpoint in float32."""
    (first, second), (expected, _) = worker.metrics, reference.metrics
    for name in ("loss", "reward_denoise", "reward_inversion"):
        assert first[name] == pytest.approx(expected[name], abs=tolerance), name
    assert second["loss"] > 0
    assert second["grad_norm"] > 0
    job = worker.job
    weights = read_whole(newest_checkpoint(job.state, checkpoint_steps(job.train)).location.path / "weights")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.fixture
def reference(job, tmp_path):
    """Train two steps in float32 on the CPU, unsharded."""
    return trained(short(job, tmp_path, "reference"), torch.device("cpu"))


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("device", [cpu, cuda], indirect=True)
def test_every_preset_computes_what_float32_on_the_cpu_computes(job, tmp_path, device, reference, capsys):
    for preset in PRESETS:
        worker = trained(with_preset(job, tmp_path, preset), device, capsys)
        assert_close(worker, reference, tolerance=BFLOAT16)


@pytest.mark.parametrize("device", [cpu, cuda], indirect=True)
def test_every_kind_of_frozen_weights_and_of_optimizer_trains(job, tmp_path, device, reference, capsys):
    autocast = {"autocast": True}
    for frozen in values_of(LoraSettings, "frozen"):
        lora = job.train.lora.model_copy(update={"frozen": frozen})
        adapters = short(job, tmp_path, f"adapters-{frozen}", compute=autocast, tune="lora", lora=lora)
        tolerance = FOUR_BITS if frozen.endswith("4") else BFLOAT16
        assert_close(trained(adapters, device, capsys), reference, tolerance=tolerance)
    for kind in values_of(OptimizerSettings, "kind"):
        optimizer = job.train.optimizer.model_copy(update={"kind": kind})
        assert_close(
            trained(short(job, tmp_path, kind, optimizer=optimizer, micro_batch_size=1), device, capsys),
            reference,
            tolerance=1e-3,
        )


@pytest.mark.parametrize("device", [cuda], indirect=True)
def test_every_kernel_of_attention_gives_the_same_step(job, tmp_path, device, reference, capsys):
    """A kernel that this project refuses to use, and so no run would use, is reported and not tested."""
    for attention in values_of(ComputeSettings, "attention"):
        compute = {"attention": attention, "autocast": True}
        try:
            worker = trained(short(job, tmp_path, f"attention-{attention}", compute=compute), device, capsys)
        except ConfigError as refusal:
            assert attention != DEFAULT
            with capsys.disabled():
                print(f"\n{refusal}")
            continue
        assert_close(worker, reference, tolerance=BFLOAT16)


@pytest.fixture
def adapters(job, tmp_path):
    """Return a directory of random adapters of the tiny base."""
    lora = job.train.lora.model_copy(update={"rank": 2})
    transformer = load_base(job.model).transformer
    add_lora(transformer, lora)
    generator = torch.Generator().manual_seed(1)
    trained = {
        name: 0.5 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in transformer.named_parameters()
        if parameter.requires_grad
    }
    write_lora(trained, lora, tmp_path / "adapters")
    return tmp_path / "adapters"


def ways_to_generate():
    """Return how the presets generate one image, each way once: `generate`, `resources.offload`, the type of embeddings."""
    ways = {}
    for preset in PRESETS:
        settings = load_settings(PROFILES / f"{preset}.yaml")
        generate = settings.generate.model_copy(update={"num_inference_steps": 2, "batch_size": 1})
        way = generate, settings.resources.offload, getattr(torch, settings.model.embeddings)
        ways[generate.model_dump_json(), *way[1:]] = way
    return list(ways.values())


def generated(job, device, models, generate, offload, embeddings):
    """Generate one image by each of some models, on a base that is loaded once.

    models: directories of adapters, None for the base. Returns the images (1, 3, H, W), and the pinned bytes of the base:
    measured, and planned.
    """
    prompts, styles, condition = read_embeddings("validation")
    image_set = ImageSet("evaluate", prompts, styles, condition.to(embeddings), 1, 0)
    before, images, held = pinned_bytes(device), [], []
    with closing(LoadedBase(job.model, generate, offload=offload)) as loaded:
        for model in models:
            base = loaded.as_model(model, device)
            held.append(pinned_bytes(device) - before)
            pixels = generate_pixels(base, "the model", image_set, [(0, 0)], generate=generate)
            images.append(from_8_bits(pixels))
        of_blocks = [one for block in blocks(base.transformer) for one in block.parameters()]
        planned = sum(pinned_size(one.numel()) * one.element_size() for one in of_blocks)
    return images, held[0], planned


def pinned_bytes(device):
    """Return the bytes of pinned memory that tensors use; torch has no figures before CUDA is used."""
    return torch.cuda.host_memory_stats().get("active_bytes.current", 0) if device.type == "cuda" else 0


@pytest.mark.parametrize("device", [cpu, cuda], indirect=True)
def test_every_preset_generates_what_float32_on_the_cpu_generates(job, device, adapters):
    """With adapters put on and taken off again, offloaded or not. Tiles change an image, so both decode alike."""
    models, expected = (None, adapters, None), {}
    for generate, offload, embeddings in ways_to_generate():
        plain = generate.model_copy(update={"autocast": False, "tf32": False})
        if plain.decode not in expected:
            exact = generated(
                job, torch.device("cpu"), models, plain, offload=False, embeddings=torch.float32
            )
            expected[plain.decode] = exact[0]
        base, adapted, _ = expected[plain.decode]
        assert float(psnr(base, adapted)) < OTHER_IMAGE
        images, pinned, planned = generated(job, device, models, generate, offload, embeddings)
        near = [float(psnr(*pair)) for pair in zip(images, expected[plain.decode], strict=True)]
        print(generate.decode, offload, [f"{one:.1f} dB" for one in near], pinned, planned)
        assert min(near) > SAME_IMAGE
        assert pinned <= planned


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("device", [cuda], indirect=True)
@pytest.mark.parametrize("preset", [name for name in PRESETS if name in ("flux1_dev", "flux1_dev_lora")])
def test_compiled_blocks_compute_the_same_sharded_and_with_adapters(
    job, tmp_path, device, reference, capsys, preset
):
    as_preset = with_preset(job, tmp_path, preset)
    compute = as_preset.train.compute.model_copy(update={"compile": True})
    compiled = ranks.changed(as_preset, tmp_path, f"{preset}-compiled", compute=compute)
    assert_close(trained(compiled, device, capsys), reference, tolerance=BFLOAT16)


@pytest.mark.parametrize("device", [cpu, cuda], indirect=True)
def test_a_killed_run_resumes_on_the_device_and_generates_the_same_images(job, tmp_path, device, capsys):
    tolerance = {"cpu": 1e-6, "cuda": 1e-2}[device.type]  # some kernels of a GPU add in any order
    four = {"steps": 4, "tune": "lora", "resources": {"async_checkpoints": True}}
    straight = trained(short(job, tmp_path, "straight", **four), device, capsys)
    killed = short(job, tmp_path, "killed", **four)
    process = ranks.context().Process(target=ranks.killed_in_the_third_step, args=(killed, device.type))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    assert newest_checkpoint(killed.state, checkpoint_steps(killed.train)).step == 2
    resumed = trained(replace(killed, resume=2), device, capsys)
    for ours, theirs in zip(resumed.metrics, straight.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance / 10)
    images, expected = (
        generate_samples(one.model, one.job, one.prompts, device) for one in (resumed, straight)
    )
    assert images.isfinite().all()
    assert (images - expected).abs().max() <= 10 * tolerance
