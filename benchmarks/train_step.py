"""Time training steps, starting with the first.

    python benchmarks/train_step.py --spec DIR --steps N [--method exact|shared|offline|literal]
    python benchmarks/train_step.py --profile params.yaml --steps N [--batch-size B]

Prints `STEP_SECONDS x` and `STEP_CPU_SECONDS x` per step, then one JSON line: means over the steps, CPU seconds by
phase, peak memory, loss. `exact`, `shared` and `offline` run this project's training code; `literal` runs the
reference's step of literal_step.py; `--profile` trains like the stage `train`. With `shared`, a step trains several
noise levels per rollout, and the figures are per pair of branches.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from literal_step import COMPUTER_GRAPHICS, MARGIN, REALISM, TRAINED_GUIDANCE, LiteralStep
from phases import Phases
from step_spec import StepSpec, load_spec
from torch import Tensor
from trial import job_of

from srpo_core.algorithm import method_of
from srpo_core.algorithm.method import TrainBatch
from srpo_core.config import Settings, TrainSettings, load_settings, patched
from srpo_core.models.base import Base
from srpo_core.models.flux import POOLED_EMBEDS, PROMPT_EMBEDS, Flux, pack
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws, keyed_noise
from srpo_core.scorers.open_clip import OpenClipReward
from srpo_core.training.learner import Learner, adamw
from srpo_core.training.worker import Worker

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("exact", "shared", "offline", "literal")
PROMPTS = ("red apple", "crab", "tiger face", "penguin", "rose")
Step = Callable[[int], float]


@dataclass(frozen=True)
class SpecDraws(Draws):
    """Draws that return the midpoint of a specification."""

    midpoint: int

    def integers(self, what: tuple[int | str, ...], low: int, high: int) -> list[int]:
        """Return the specified midpoint for the first pair; draw those of further pairs of a rollout."""
        if what == ("midpoint", 0):
            return [self.midpoint]
        return super().integers(what, low, high)


def train_settings(spec: StepSpec, *, pairs: int, source: str) -> TrainSettings:
    """Translate the specification's arguments into this project's settings."""
    args, optimizer = spec.args, spec.optimizer
    first, last = args["train_timestep"]
    patch = {
        "method": "srpo",
        "reference": True,
        "batch_size": 1,
        "batch_branches": True,
        "pairs_per_rollout": pairs,
        "rollout": {
            "source": source,
            "num_inference_steps": args["sampling_steps"],
            "shift": args["shift"],
            "guidance_scale": args["train_guidence"],
        },
        "direct_align": {
            "grid": args["timestep_length"],
            "schedule_steps": args["vis_sampling_step"],
            "first": first,
            "last": last,
            "ratio": args["groundtruth_ratio"],
            "guidance_scale": TRAINED_GUIDANCE,
            "discount_denoise": args["discount_pos"],
            "discount_inversion": args["discount_inv"],
            "branches": ["denoise", "inversion"],
            "margin": MARGIN,
        },
        "optimizer": {
            "learning_rate": optimizer["lr"],
            "weight_decay": optimizer["weight_decay"],
            "betas": optimizer["betas"],
            "eps": optimizer["eps"],
            "max_grad_norm": optimizer["max_grad_norm"],
        },
    }
    tiny = load_settings(ROOT / "profiles/tiny.yaml").train.model_dump()
    return TrainSettings.model_validate(patched(tiny, patch))


def learner_of(spec: StepSpec, settings: TrainSettings) -> Learner:
    """Return this project's learner with the specification's models."""
    model = Base(Flux(spec.vae, None, height=spec.args["h"], width=spec.args["w"]), spec.flux, spec.vae)
    reward = OpenClipReward(spec.clip, spec.image_size, spec.context_length)
    return Learner(model, reward, adamw(spec.flux, settings), settings, method_of(settings))


def batch_of(spec: StepSpec, step: int, *, real: Tensor | None = None) -> TrainBatch:
    """Return the batch of a step, with the same noise, texts and midpoint as the literal step."""
    return TrainBatch(
        prompts=[spec.caption],
        condition=Condition({PROMPT_EMBEDS: spec.prompt_embeds, POOLED_EMBEDS: spec.pooled}),
        noise=pack(spec.noise(step)).float(),
        draws=SpecDraws(0, step, [0], spec.mid_timestep),
        given={} if real is None else {0: real},
        wanted=REALISM[step % len(REALISM)],
        unwanted=COMPUTER_GRAPHICS[step % len(COMPUTER_GRAPHICS)],
    )


def ours(spec: StepSpec, phases: Phases, *, pairs: int, offline: bool) -> Step:
    """Return a step of this project's training."""
    learner = learner_of(spec, train_settings(spec, pairs=pairs, source="offline" if offline else "online"))
    phases.time_model(learner.model, learner.reward)
    phases.time_optimizer(learner.optimizer)
    real = keyed_noise(learner.model.latent_shape, 0, "real") if offline else None
    return lambda step: learner.step(batch_of(spec, step, real=real), step)["loss"]


def literal(spec: StepSpec, phases: Phases) -> Step:
    """Return a step of the reference."""
    reference = LiteralStep(spec)
    reference.report_to(phases)
    return lambda step: reference.run(step, spec.noise(step), spec.mid_timestep)


def profile_step(settings: Settings, phases: Phases, directory: Path) -> Step:
    """Return a step of the worker under `settings`, on a few prompts; changes the working directory to `directory`."""
    from srpo_core.models import encode_prompts
    from srpo_core.models.embeddings import write_embeddings

    (directory / "assets").symlink_to(ROOT / "assets")
    os.chdir(directory)
    condition = encode_prompts(settings.model, PROMPTS, batch_size=len(PROMPTS))
    write_embeddings("train", PROMPTS, [""] * len(PROMPTS), condition)
    worker = Worker(job_of(settings, directory), rank=0, world=1, device=torch.device("cpu"))
    phases.time_model(worker.model, worker.learner.reward)
    phases.time_optimizer(worker.learner.optimizer)
    return lambda step: worker.step(step)["loss"]


def run(step_of: Step, phases: Phases, *, steps: int, pairs: int) -> dict[str, Any]:
    """Time steps 1 … `steps`; return figures per pair, losses per step."""
    wall, cpu, losses = [], [], []
    for step in range(1, steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(step_of(step))
        wall.append((time.perf_counter() - start) / pairs)
        cpu.append((time.process_time() - cpu_start) / pairs)
        print(f"STEP_SECONDS {wall[-1]:.4f}\nSTEP_CPU_SECONDS {cpu[-1]:.4f}", flush=True)
    return {
        "seconds": sum(wall) / steps,
        "cpu_seconds": sum(cpu) / steps,
        "phases": {name: round(total / steps / pairs, 5) for name, total in phases.seconds.items()},
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "loss": losses[-1],
        "losses": losses,
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--spec", type=Path, help="directory with spec.json")
    what.add_argument("--profile", type=Path, help="settings file whose training step is timed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--method", choices=METHODS, default="exact")
    parser.add_argument("--pairs-per-rollout", type=int, default=4, help="with --method shared")
    parser.add_argument("--batch-size", type=int, help="with --profile: images per step")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(given)


def main() -> None:
    """Run the chosen benchmark."""
    options = arguments()
    torch.set_num_threads(options.threads)
    phases, pairs = Phases(), options.pairs_per_rollout if options.method == "shared" else 1
    with tempfile.TemporaryDirectory() as directory:
        if options.profile:
            settings, pairs = load_settings(options.profile), 1
            size = {"train": {"batch_size": options.batch_size}}
            settings = Settings.model_validate(patched(settings.model_dump(), size))
            step_of = profile_step(settings, phases, Path(directory))
        elif options.method == "literal":
            step_of = literal(load_spec(options.spec), phases)
        else:
            spec = load_spec(options.spec)
            step_of = ours(spec, phases, pairs=pairs, offline=options.method == "offline")
        figures = run(step_of, phases, steps=options.steps, pairs=pairs)
        os.chdir(ROOT)  # the temporary directory is deleted
    method = str(options.profile) if options.profile else options.method
    print(json.dumps({"method": method, "pairs_per_rollout": pairs, **figures}))


if __name__ == "__main__":
    main()
