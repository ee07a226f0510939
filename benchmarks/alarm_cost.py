"""Measure what early stop costs beside training: CPU seconds of a run in this process, without Ray.

    make demo && OMP_NUM_THREADS=1 python benchmarks/alarm_cost.py

Runs the settings of params.yaml without early stop, with it while the base's images are generated, with it when they
are known, and without it again. Prints JSON.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from trial import job_of

from srpo_core.config import EarlyStop, Settings, load_settings
from srpo_core.runtime.shared_files import Location
from srpo_core.training.worker import Worker


def cpu_seconds(settings: Settings, early_stop: EarlyStop | None, directory: Path, name: str) -> float:
    """Train in `directory`/`name` and return the CPU seconds; the base's images are kept in `directory`."""
    job = replace(
        job_of(settings, directory / name),
        base_images=Location.of(directory / "base_images.safetensors"),
        train=settings.train.model_copy(update={"early_stop": early_stop}),
    )
    started = time.process_time()
    Worker(job, rank=0, world=1, device=torch.device("cpu")).run()
    return time.process_time() - started


def main() -> None:
    """Train four times and print the costs."""
    settings = load_settings()
    rule = settings.train.early_stop
    assert rule is not None, "train.early_stop of params.yaml is null"
    with TemporaryDirectory() as directory:
        rules = {"before": None, "first": rule, "again": rule, "after": None}
        seconds = {name: cpu_seconds(settings, own, Path(directory), name) for name, own in rules.items()}
    training = (seconds["before"] + seconds["after"]) / 2
    evaluations = seconds["again"] - training
    line = {
        "training_seconds": training,
        "evaluations_seconds": evaluations,
        "share_of_training": evaluations / training,
        "base_once_seconds": seconds["first"] - seconds["again"],
    }
    print(json.dumps({name: round(value, 3) for name, value in line.items()}))


if __name__ == "__main__":
    main()
