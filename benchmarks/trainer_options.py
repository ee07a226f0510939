"""Measure what the options of the trainer change on the tiny profile: schedule, moving average, 8-bit AdamW, buckets.

    python benchmarks/trainer_options.py --steps 20 --batch-size 8 --seeds 2

All runs have the same base, prompts, noise and number of optimizer steps. The gate's judge, which none of them uses,
classifies images of subjects that are not in the training prompts. Prints one JSON line per run: the figures, the CPU
seconds of a step, the bytes of the optimizer's state per trained weight, and `apart`, the distance of the released
weights from those of the first run, relative to how far that run moved them. There is one run each and no interval, so
a difference below about .03 (of 80 images) is not significant.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from quirks import Quirk, with_quirk
from torch import Tensor
from trial import ROOT, absolute, evaluation_images, figures, job_of, train_prompts

from srpo_core.config import Settings, load_settings
from srpo_core.training.worker import Worker

OPTIONS: Final = (
    Quirk("none", "the tiny profile", {}),
    Quirk("warmup", "warm-up of 5 steps", {"optimizer": {"schedule": {"warmup_steps": 5}}}),
    Quirk("linear", "linear schedule", {"optimizer": {"schedule": {"name": "linear"}}}),
    Quirk("cosine", "cosine schedule", {"optimizer": {"schedule": {"name": "cosine"}}}),
    Quirk("ema", "moving average, decay 0.9", {"ema": {"decay": 0.9, "start": 0}}),
    Quirk("adamw_8bit", "moments in 8 bits", {"optimizer": {"kind": "adamw_8bit"}}),
    Quirk("buckets", "three sizes", {"buckets": [[64, 64], [48, 80], [80, 48]]}),
)


def weights_of(worker: Worker) -> Tensor:
    """Return all trained weights as one vector."""
    return torch.cat([p.detach().flatten() for p in worker.model.transformer.parameters()])


def bytes_of_state(worker: Worker) -> float:
    """Return the bytes of the optimizer's moments per trained weight, without the tables that all tensors share."""
    moments = [
        value
        for state in worker.learner.optimizer.state.values()
        for name, value in state.items()
        if name != "step" and not name.startswith("qmap")
    ]
    return sum(one.numel() * one.element_size() for one in moments) / len(weights_of(worker))


def trial(settings: Settings, directory: Path, seeds: int) -> tuple[dict[str, float], Tensor, Tensor]:
    """Train and measure; return the figures, and the weights before and after."""
    worker = Worker(job_of(settings, directory), rank=0, world=1, device=torch.device("cpu"))
    before, cpu, steps = weights_of(worker), time.process_time(), settings.train.steps
    for step in range(1, steps + 1):
        worker.step(step)
    spent = {
        "cpu_seconds": (time.process_time() - cpu) / steps,
        "bytes_of_state": bytes_of_state(worker),
    }
    with worker.average.applied() if worker.average else nullcontext():
        judged = figures(settings, worker.model, evaluation_images(settings, seeds), steps)
        return judged | spent, before, weights_of(worker)


def main() -> None:
    """Train and measure with each option."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2, help="images of each of the 40 subjects")
    options = parser.parse_args()
    if options.seeds <= 1:
        parser.error("--seeds must be 2 or more: diversity compares the images of one prompt")
    torch.set_num_threads(1)
    settings = absolute(load_settings(ROOT / "profiles/tiny.yaml"))
    train = settings.train.model_copy(update={"batch_size": options.batch_size})
    settings = settings.model_copy(update={"train": train})
    plain: Any = None
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        train_prompts(settings)
        for option in OPTIONS:
            row, before, after = trial(
                with_quirk(settings, option, options.steps), Path(place), options.seeds
            )
            plain = after if plain is None else plain
            row["apart"] = float((after - plain).norm() / (plain - before).norm())
            rounded = {name: round(value, 4) for name, value in row.items()}
            print(json.dumps({"option": option.number, "what": option.name} | rounded), flush=True)
        os.chdir(ROOT)  # the temporary directory is deleted


if __name__ == "__main__":
    main()
