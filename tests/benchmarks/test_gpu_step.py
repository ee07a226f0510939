"""benchmarks/gpu_step.py at toy width on the CPU, in an environment with nothing but the packages that it names."""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from srpo_core.weights.models_lock import read_lock

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "peft",
    "safetensors",
    "pydantic",
    "ruamel.yaml",
)
ABSENT = (
    "ray",
    "prefect",
    "dvc",
    "boto3",
    "pandas",
    "pyarrow",
    "scipy",
    "great_expectations",
    "bitsandbytes",
)
SMALL = ("--device", "cpu", "--sizes", "64", "--steps", "1")
# refuses to run if a package of the pipeline is importable
RUN_ALONE = f"""
import importlib.util, runpy, sys
found = [name for name in {ABSENT} if importlib.util.find_spec(name)]
assert not found, f"this environment must not have {{found}}"
sys.path.insert(0, "benchmarks")
runpy.run_path("benchmarks/gpu_step.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def gpu_step(benchmark_named):
    return benchmark_named("gpu_step")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    directory = tmp_path_factory.mktemp("spec")
    small = json.loads((Path(__file__).parent / "small_spec.json").read_text())
    (directory / "spec.json").write_text(json.dumps({"text_tokens": 12, **small}))
    return directory


@pytest.fixture
def options(gpu_step, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def parse(*more):
        given = ["--out", str(tmp_path / "out.json"), "--spec", str(spec), *SMALL, *more]
        return gpu_step.arguments(given)

    return parse


def closure(names):
    """Return the installed distributions that `names` require, themselves included, with the extras they ask for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, waiting = {}, [(name, frozenset()) for name in names]
    while waiting:
        name, extras = waiting.pop()
        known, done = found.get(canonicalize_name(name), (None, frozenset()))
        if known is not None and extras <= done:
            continue
        known = known or metadata.distribution(name)
        found[canonicalize_name(name)] = known, done | extras
        for text in known.requires or []:
            required = Requirement(text)
            if required.marker is None or any(
                required.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                waiting.append((required.name, frozenset(required.extras)))
    return [known for known, _ in found.values()]


def link_only(distributions, directory):
    """Link what the distributions installed into a directory, and nothing else of site-packages."""
    directory.mkdir()
    for distribution in distributions:
        tops = {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            link = directory / top
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(top)).resolve())
    return directory


def run_alone(python, environment, spec, out):
    """Run the benchmark on the small specification; return its report."""
    command = [*python, "-c", RUN_ALONE, "--spec", str(spec), "--out", str(out), *SMALL]
    done = subprocess.run(
        [*command, "--peak-tflops", "0.1", "--set", "train.lora.rank=8"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "OMP_NUM_THREADS": "1", **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def assert_complete(report):
    """Require both steps with all phases, and figures that agree with each other."""
    models, ours, literal = report["parts"]
    assert [part["status"] for part in report["parts"]] == ["ok"] * 3
    assert (ours["method"], literal["method"]) == ("ours", "literal")
    for part in (ours, literal):
        assert set(part["phases"]) == {"rollout", "forward", "decode", "reward", "backward", "optimizer"}
        assert 0 < sum(part["phases"].values()) <= part["seconds"]
        assert all(math.isfinite(loss) and loss > 0 for loss in part["losses"])
    assert models["parameters"] > 0
    assert ours["tflop"] == pytest.approx(sum(ours["planned_tflop"].values()))
    assert ours["tflop_per_second"]["step"] * ours["seconds"] == pytest.approx(ours["tflop"])
    rolled = ours["tflop_per_second"]["rollout"] * ours["phases"]["rollout"]
    assert rolled == pytest.approx(ours["planned_tflop"]["rollout"])
    assert ours["mfu"]["step"] == pytest.approx(ours["tflop_per_second"]["step"] / 0.1)
    assert ours["planned_peak_memory_gb"] == pytest.approx(sum(ours["planned_memory_gb"].values()))


# starts an interpreter that imports torch, diffusers and open_clip: ten seconds
@pytest.mark.pipeline
def test_it_runs_with_nothing_installed_but_the_packages_that_it_names(spec, tmp_path):
    site = link_only(closure(PACKAGES), tmp_path / "site")
    python = [sys.executable, "-S", "-s"]  # without site-packages
    path = os.pathsep.join([str(site), str(ROOT)])
    assert_complete(run_alone(python, {"PYTHONPATH": path}, spec, tmp_path / "out.json"))


# downloads 3 GB and installs them
@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.parametrize(
    ("python", "torch_version"), [("3.11", "2.11.*"), ("3.12", "2.11.*"), ("3.12", "2.14.*")]
)
def test_it_runs_on_another_python_and_an_older_torch(spec, tmp_path, python, torch_version):
    interpreter = shutil.which(f"python{python}")
    if interpreter is None or subprocess.run([interpreter, "-V"], check=False).returncode != 0:
        pytest.skip(f"Python {python} is not installed")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "venv"], check=True)
    alone = tmp_path / "venv/bin/python"
    wanted = [f"torch=={torch_version}", *PACKAGES[1:]]
    subprocess.run([alone, "-m", "pip", "install", "--quiet", *wanted], check=True)
    report = run_alone([str(alone)], {"PYTHONPATH": str(ROOT)}, spec, tmp_path / "out.json")
    assert report["python"].startswith(python)
    assert_complete(report)


def test_the_full_size_specification_is_flux1_dev_with_hpsv2(gpu_step, monkeypatch):
    from open_clip import get_model_config

    monkeypatch.chdir(ROOT)
    full = json.loads((ROOT / "benchmarks/specs/flux1_dev/spec.json").read_text())
    architecture = read_lock()["models/flux1_dev"].architecture
    assert full["configs"] == {**_named(architecture), "hps": get_model_config("ViT-H-14")}
    assert (full["args"]["h"], full["args"]["sampling_steps"], full["text_tokens"]) == (720, 25, 512)
    assert gpu_step.arguments(["--out", "x"]).sizes == [720, 1024]


def _named(architecture):
    return {"flux": architecture["transformer"], "vae": architecture["vae"]}


@pytest.mark.pipeline  # four steps, two of them with anomaly detection
def test_a_part_leaves_the_shared_models_and_torch_as_they_were(gpu_step, options, spec, tmp_path):
    given = options("--set", "train.compute.autocast=false", "--set", "train.lora.frozen=float32")
    values = json.loads((spec / "spec.json").read_text())
    settings = gpu_step.settings_of(values, 64, given.set, tmp_path)
    assert not settings.train.compute.autocast
    cpu = torch.device("cpu")
    models = gpu_step.random_models(values["configs"], settings.train.lora, cpu)
    before = torch.Tensor.backward, torch.nn.utils.get_total_norm, torch.nn.utils.clip_grad_norm_
    for method in gpu_step.METHODS:
        figures = gpu_step.measured(gpu_step.Part(method, settings, values, models, cpu), 1)
        assert len(figures["losses"]) == 2, "the first step is not timed"
        assert len(figures["each_seconds"]) == 1
        after = torch.Tensor.backward, torch.nn.utils.get_total_norm, torch.nn.utils.clip_grad_norm_
        assert after == before
        assert not torch.is_anomaly_enabled()
        assert not models.flux.gradient_checkpointing
        everything = [p for module in (models.flux, models.vae, models.clip) for p in module.parameters()]
        assert all(p.grad is None for p in everything)
        trained = {name for name, p in models.flux.named_parameters() if p.requires_grad}
        assert all(".lora_" in name for name in trained)
        assert not any(p.requires_grad for p in models.vae.parameters())


@pytest.mark.pipeline  # four steps, two of them with anomaly detection
def test_it_times_adapters_on_a_base_in_4_bits_by_an_optimizer_in_8_bits(gpu_step, options, tmp_path):
    given = options("--set", "train.lora.frozen=nf4", "--set", "train.optimizer.kind=adamw_8bit")
    parts = list(gpu_step.run(given, tmp_path))
    assert [part["status"] for part in parts] == ["ok"] * 3
    assert all(math.isfinite(loss) and loss > 0 for part in parts[1:] for loss in part["losses"])


def test_a_base_in_4_bits_has_weights_of_the_same_scale_and_number(gpu_step, options, spec, tmp_path):
    from bitsandbytes.functional import dequantize_4bit

    values = json.loads((spec / "spec.json").read_text())
    lora = gpu_step.settings_of(values, 64, options().set, tmp_path).train.lora
    four, half = (
        gpu_step.random_models(
            values["configs"], lora.model_copy(update={"frozen": kind}), torch.device("cpu")
        )
        for kind in ("nf4", "bfloat16")
    )
    assert four.num_weights == half.num_weights == sum(p.numel() for p in half.flux.parameters())
    ours, theirs = (one.flux.transformer_blocks[0].ff.net[2].base_layer.weight for one in (four, half))
    assert ours.dtype == torch.uint8
    restored = dequantize_4bit(ours.data, ours.quant_state)
    assert restored.shape == theirs.shape
    assert float(restored.std()) == pytest.approx(float(theirs.std()), rel=0.05)


def test_too_little_memory_is_a_result(gpu_step, options, monkeypatch, tmp_path):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24 GB\nmore")

    monkeypatch.setattr(gpu_step, "measured", fail)
    parts = list(gpu_step.run(options(), tmp_path))
    assert [part["status"] for part in parts] == ["ok", "out of memory", "out of memory"]
    assert parts[1]["error"] == "CUDA out of memory. Tried to allocate 24 GB"
    monkeypatch.setattr(gpu_step, "random_models", fail)
    assert [part["status"] for part in gpu_step.run(options(), tmp_path)] == ["out of memory"]


def test_no_part_starts_after_the_given_time(gpu_step, options, tmp_path):
    parts = list(gpu_step.run(options("--minutes", "0"), tmp_path))
    assert [part["status"] for part in parts] == ["ok", *["skipped: out of time"] * 2]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA Something New", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(gpu_step, monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    found = gpu_step.peak_flops(torch.device("cuda"))
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))
    assert gpu_step.peak_flops(torch.device("cpu")) is None
