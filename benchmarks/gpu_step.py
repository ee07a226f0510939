"""Time training steps of FLUX.1-dev on one GPU, with random weights: nothing is downloaded.

    PYTHONPATH=. python benchmarks/gpu_step.py --out gpu_step.json [--sizes 720 1024] [--methods ours literal] [--steps 3]

`ours` is the step of profiles/flux1_dev_lora.yaml with one image: adapters on frozen bfloat16 weights. `literal` is the
reference's step of literal_step.py on the same models, under autocast and with its checkpointing, but with the adapters
as the only trained weights, because one GPU cannot hold the state of all of them. `--set KEY=VALUE` changes a setting.

Writes one JSON file, again after every part: per part the seconds of a step and of its phases, the peak memory beside
the plan's, TFLOP/s and MFU. FLOPs are the plan's, with recomputed activations, so `mfu` is what `srpo plan --mfu`
takes. Running out of memory is a result of a part. No part starts after `--minutes`. The first step is not counted.

It needs torch >= 2.11, diffusers, transformers, open_clip_torch, peft, safetensors, pydantic and ruamel.yaml, on Python
3.11 or 3.12 (and bitsandbytes for 4 or 8 bits). Run it in a checkout of this repository, where nothing of it has to be installed.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_models import RandomModels, peak_flops, planned, random_models, settings_of
from literal_step import LiteralStep
from phases import Phases
from step_spec import StepSpec

from srpo_core.algorithm import method_of
from srpo_core.algorithm.method import TrainBatch
from srpo_core.config import Settings
from srpo_core.models.base import Base
from srpo_core.models.flux import POOLED_EMBEDS, PROMPT_EMBEDS, Flux
from srpo_core.models.precision import tf32
from srpo_core.models.sharding import blocks
from srpo_core.plan import GB, TERA, Plan
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws, keyed_noise
from srpo_core.scorers.autocast import AutocastReward
from srpo_core.scorers.open_clip import OpenClipReward
from srpo_core.training.learner import Learner, adamw

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("ours", "literal")
Step = Callable[[int], float]


@dataclass(frozen=True)
class Part:
    """What one part times: a step of `method` for an image of `settings.model.height` pixels."""

    method: str
    settings: Settings
    spec: dict[str, Any]
    models: RandomModels
    device: torch.device

    def step(self, phases: Phases) -> Step:
        """Return the step, whose phases are added to `phases`."""
        return ours(self, phases) if self.method == "ours" else literal(self, phases)


def ours(part: Part, phases: Phases) -> Step:
    """Return a step of this project's training."""
    settings, models, hps = part.settings, part.models, part.spec["configs"]["hps"]
    size, train = settings.model.height, settings.train
    model = Base(Flux(models.vae, None, height=size, width=size), models.flux, models.vae)
    model.prepare(train.compute)
    towers = OpenClipReward(models.clip, hps["vision_cfg"]["image_size"], hps["text_cfg"]["context_length"])
    reward = AutocastReward(towers) if train.compute.autocast else towers
    learner = Learner(model, reward, adamw(models.flux, train), train, method_of(train))
    phases.time_model(model, towers)
    phases.time_optimizer(learner.optimizer)
    embeds, pooled = prompt_of(part)

    def run(step: int) -> float:
        batch = TrainBatch(
            prompts=[part.spec["caption"]],
            condition=Condition({PROMPT_EMBEDS: embeds, POOLED_EMBEDS: pooled}),
            noise=keyed_noise(model.latent_shape, 0, "gpu_step", step)[None].to(part.device),
            draws=Draws(0, step, [0]),
            given={},
            wanted="Real",
            unwanted="Anime",
        )
        with tf32(enabled=train.compute.tf32):
            return learner.step(batch, step)["loss"]

    return run


def literal(part: Part, phases: Phases) -> Step:
    """Return a step of the reference: all blocks checkpointed, the decoder not."""
    models, hps, size = part.models, part.spec["configs"]["hps"], part.settings.model.height
    models.flux.enable_gradient_checkpointing()
    embeds, pooled = prompt_of(part)
    spec = StepSpec(
        args={**part.spec["args"], "h": size, "w": size},
        caption=part.spec["caption"],
        mid_timestep=part.spec["mid_timestep"],
        optimizer=part.spec["optimizer"],
        image_size=hps["vision_cfg"]["image_size"],
        context_length=hps["text_cfg"]["context_length"],
        flux=models.flux,
        vae=models.vae,
        clip=models.clip,
        prompt_embeds=embeds,
        pooled=pooled,
    )
    with torch.device(part.device):
        reference = LiteralStep(spec)
    reference.report_to(phases)

    def run(step: int) -> float:
        noise = spec.noise(step).to(part.device)
        with torch.device(part.device), torch.autocast(part.device.type, torch.bfloat16):
            return reference.run(step, noise, spec.mid_timestep)

    return run


def prompt_of(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random embeddings (1, L, D) and (1, P) of a prompt."""
    flux, generator = part.spec["configs"]["flux"], torch.Generator().manual_seed(1)
    shapes = ((1, part.spec["text_tokens"], flux["joint_attention_dim"]), (1, flux["pooled_projection_dim"]))
    embeds, pooled = (torch.randn(shape, generator=generator).to(part.device) for shape in shapes)
    return embeds, pooled


@contextmanager
def unchanged(models: RandomModels) -> Iterator[None]:
    """Undo what a part sets on the shared models: gradients, checkpointing, compilation, anomaly mode."""
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(False)
        models.flux.disable_gradient_checkpointing()
        models.vae.disable_gradient_checkpointing()
        models.vae.requires_grad_(requires_grad=False)
        models.flux.reset_attention_backend()
        for module in (*blocks(models.flux), models.vae.decoder):
            module._compiled_call_impl = None
        for module in (models.flux, models.vae, models.clip):
            module.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measured(part: Part, steps: int) -> dict[str, Any]:
    """Run one step and then `steps` timed ones; return seconds, phases and peak memory."""
    on_gpu = part.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(part.device)
    seconds, losses = [], []
    with unchanged(part.models), Phases.on(part.device) as phases:
        step_of = part.step(phases)
        for step in range(1, steps + 2):
            wait_for(part.device)
            start = time.perf_counter()
            losses.append(step_of(step))
            wait_for(part.device)
            seconds.append(time.perf_counter() - start)
            if step == 1:
                phases.clear()
        by_phase = {name: total / steps for name, total in phases.seconds.items()}
    return {
        "seconds": statistics.median(seconds[1:]),
        "first_seconds": seconds[0],
        "each_seconds": seconds[1:],
        "phases": by_phase,
        "peak_memory_gb": torch.cuda.max_memory_allocated(part.device) / GB if on_gpu else None,
        "peak_reserved_gb": torch.cuda.max_memory_reserved(part.device) / GB if on_gpu else None,
        "losses": losses,
    }


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(figures: dict[str, Any], plan: Plan, peak: float | None) -> dict[str, Any]:
    """Return the plan's figures of a step, and the rate at which the measured step computes its FLOPs.

    Without the memory of the CUDA context, which torch does not report either.
    """
    memory = {part: size / GB for part, size in plan.memory.items() if part != "device's own"}
    flops = sum(plan.flops.values())
    rates = {
        "step": flops / figures["seconds"],
        "rollout": plan.flops["rollout"] / figures["phases"]["rollout"],
    }
    return {
        "planned_peak_memory_gb": sum(memory.values()),
        "planned_memory_gb": memory,
        "planned_tflop": {phase: count / TERA for phase, count in plan.flops.items()},
        "tflop": flops / TERA,
        "tflop_per_second": {what: rate / TERA for what, rate in rates.items()},
        "mfu": {what: rate / peak for what, rate in rates.items()} if peak else None,
    }


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of `work`, with a status; too little memory is a status too."""
    try:
        return {"status": "ok", **work()}
    except torch.OutOfMemoryError as error:
        return {"status": "out of memory", "error": str(error).partition("\n")[0]}


def run(options: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of one part after the other."""
    start, device = time.monotonic(), torch.device(options.device)
    spec = json.loads((options.spec / "spec.json").read_text(encoding="utf-8"))
    peak = options.peak_tflops * TERA if options.peak_tflops else peak_flops(device)
    by_size = {size: settings_of(spec, size, options.set, directory) for size in options.sizes}
    made: list[RandomModels] = []

    def make() -> dict[str, Any]:
        lora = by_size[options.sizes[0]].train.lora
        made.append(random_models(spec["configs"], lora, device))
        return {"parameters": made[0].num_weights}

    yield {"part": "models", **attempt(make), "seconds": time.monotonic() - start}
    for size, settings in by_size.items() if made else ():
        for method in options.methods:
            row = {"part": "step", "image_size": size, "method": method}
            if time.monotonic() - start > 60 * options.minutes:
                yield row | {"status": "skipped: out of time"}
                continue
            part = Part(method, settings, spec, made[0], device)
            row |= attempt(lambda part=part: measured(part, options.steps))  # type: ignore[misc]
            if method == "ours" and row["status"] == "ok":
                row |= compared(row, planned(settings, peak), peak)
            yield row


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--spec", type=Path, default=ROOT / "benchmarks/specs/flux1_dev")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[720, 1024])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each part")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part starts later")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that this script does not know")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(given)
    options.out, options.spec = options.out.absolute(), options.spec.absolute()
    return options


def setting(text: str) -> dict[str, Any]:
    """Parse `a.b=value` to a patch of the settings; the value is JSON, or else a string."""
    key, _, value = text.partition("=")
    try:
        patch: Any = json.loads(value)
    except json.JSONDecodeError:
        patch = value
    for name in reversed(key.split(".")):
        patch = {name: patch}
    return patch


def main() -> None:
    """Run all parts; print and write what is known after each."""
    options = arguments()
    os.chdir(ROOT)  # models.lock
    on_gpu = torch.device(options.device).type == "cuda"
    report = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "spec": options.spec.name,
        "set": options.set,
        "parts": [],
    }
    with tempfile.TemporaryDirectory() as directory:
        for part in run(options, Path(directory)):
            report["parts"].append(part)
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(part), flush=True)


if __name__ == "__main__":
    main()
