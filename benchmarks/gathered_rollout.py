"""Measure what a rollout of a sharded model costs if its weights are gathered at each step, or once.

    python benchmarks/gathered_rollout.py [--ranks 2] [--steps 16] [--images 2] [--rounds 5]

Starts ranks on this machine, which talk by gloo, and shards the tiny base over them with FSDP2. Both ways alternate in
one run. Prints a JSON line: the median CPU seconds of a rollout on rank 0 in both ways, their ratio, and whether the
latents are equal to the last bit.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from srpo_core.algorithm.rollout import rollout
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import Settings, load_settings
from srpo_core.models import base_entry, load_trainable
from srpo_core.models.sharding import mesh_of
from srpo_core.protocols import Condition
from srpo_core.randomness import keyed_noise

ROOT = Path(__file__).resolve().parents[1]


def inputs(settings: Settings, images: int, shape: tuple[int, int]) -> tuple[Tensor, Condition]:
    """Return noise (B, S, C) and a random condition."""
    config = json.loads((ROOT / settings.model.path / "transformer/config.json").read_text(encoding="utf-8"))
    shapes = base_entry(settings.model).condition_shapes(config, settings.model.max_sequence_length)
    condition = Condition({name: keyed_noise((images, *one[1:]), 0, name) for name, one in shapes.items()})
    return keyed_noise((images, *shape), 0, "noise"), condition


def one_rank(rank: int, options: argparse.Namespace, meeting: str) -> None:
    """Measure on one rank; rank 0 prints."""
    torch.set_num_threads(1)
    os.chdir(ROOT)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.ranks)
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    resources = settings.resources.model_copy(update={"shard": True, "train_workers": options.ranks})
    compute = settings.train.compute.model_copy(update={"gather_rollout": True})
    model = load_trainable(
        settings.model,
        settings.train.model_copy(update={"compute": compute}),
        seed=0,
        device=torch.device("cpu"),
        mesh=mesh_of(resources, options.ranks, "cpu"),
    )
    noise, condition = inputs(settings, options.images, model.latent_shape)
    sigmas = shifted_sigmas(options.steps, settings.train.rollout.shift)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    latents = {}
    for _ in range(options.rounds + 1):
        for once, taken in seconds.items():
            start = time.process_time()
            if once:
                with model.gathered():
                    latents[once] = rollout(model.velocity, noise, condition, sigmas=sigmas, guidance=1.0)
            else:
                latents[once] = rollout(model.velocity, noise, condition, sigmas=sigmas, guidance=1.0)
            taken.append(time.process_time() - start)
    each, once_only = (median(taken[1:]) for taken in seconds.values())  # the first is a warm-up
    if rank == 0:
        figures = {"gathered at each step": round(each, 3), "gathered once": round(once_only, 3)}
        equal = torch.equal(latents[False], latents[True])
        print(json.dumps({**figures, "ratio": round(once_only / each, 2), "bit-equal latents": equal}))
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("ranks", 2), ("steps", 16), ("images", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        multiprocessing.spawn(one_rank, (options, f"file://{directory}/meeting"), nprocs=options.ranks)


if __name__ == "__main__":
    main()
