"""Measure what a prepared rollout saves: CPU seconds of a rollout with and without preparation, in turns.

    python benchmarks/prepared_rollout.py --spec DIR [--images N] [--rounds N]

Prints one JSON line: medians of the CPU seconds, their ratio, and the relative difference of the images' latents.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from step_spec import load_spec
from torch import Tensor
from train_step import batch_of, learner_of, train_settings

from srpo_core.algorithm.rollout import rollout
from srpo_core.algorithm.schedule import shifted_sigmas


def rollouts(spec: Path, num_images: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return a rollout of the specification by separate calls, and the same prepared; both return the latents."""
    step = load_spec(spec)
    settings = train_settings(step, pairs=1, source="online")
    model, roll = learner_of(step, settings).model, settings.rollout
    condition = batch_of(step, 1).condition[[0] * num_images]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_images, *model.latent_shape, generator=generator)
    sigmas = shifted_sigmas(roll.num_inference_steps, roll.shift)

    def plain() -> Tensor:
        return rollout(model.velocity, noise, condition, sigmas=sigmas, guidance=roll.guidance_scale)

    def prepared() -> Tensor:
        with model.prepared(condition, times=sigmas[:-1], guidance=roll.guidance_scale):
            return plain()

    return plain, prepared


def main() -> None:
    """Run both in turns and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain, prepared = rollouts(options.spec, options.images)
    expected, found = plain(), prepared()  # the first of each is a warm-up
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        for run, taken in zip((plain, prepared), seconds, strict=True):
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    separate, once = (median(taken) for taken in seconds)
    figures = {"separate": round(separate, 4), "prepared": round(once, 4), "ratio": round(once / separate, 3)}
    difference = float((found - expected).norm() / expected.norm())
    print(json.dumps({**figures, "relative difference": f"{difference:.1e}"}))


if __name__ == "__main__":
    main()
