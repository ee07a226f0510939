"""Measure the effect of each quirk of the reference: train the tiny profile with and without it.

    python benchmarks/quirks.py --steps 20 --seeds 2 > .srpo/quirks.jsonl

The numbers of the quirks are those of docs/algorithm.md. All runs have the same base, prompts, noise and number of
optimizer steps; the gate's judge then classifies style and subject of images of subjects that are not in the training
prompts. Prints one JSON line per run: the figures, their difference from the run without quirks, and the CPU seconds
of a step. There is one run each and no interval, so a difference below about .03 (of 80 images) is not significant.
`--only` chooses quirks by number; `--table docs/algorithm.md` writes the differences into the last column of its table.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor
from trial import ROOT, absolute, evaluation_images, figures, job_of, train_prompts

from srpo_core.algorithm.method import LossTerm
from srpo_core.algorithm.reward import Rewards, relative_reward
from srpo_core.config import Settings, TrainSettings, load_settings
from srpo_core.config import patched as with_patch
from srpo_core.protocols import RewardModel
from srpo_core.training.worker import Worker

Change = Callable[[Worker], None]


def nothing(worker: Worker) -> None:
    """Do not change the worker."""


def coarse_time(worker: Worker) -> None:
    """Round the model's time input to bfloat16: above 512 thousandths, to multiples of four."""
    model: Any = worker.model
    inner = model.velocity

    def velocity(latents: Tensor, timestep: Tensor, guidance: float, condition: Any) -> Tensor:
        coarse = (timestep.bfloat16() * 1000).float() / 1000
        output: Tensor = inner(latents, coarse, guidance, condition)
        return output

    model.velocity = velocity


def anomaly_mode(worker: Worker) -> None:
    """Make autograd check every backward function for NaN."""
    torch.autograd.set_detect_anomaly(True)


def vae_gradients(worker: Worker) -> None:
    """Compute the gradients of the VAE's weights too, and never clear them."""
    model: Any = worker.model
    model.vae.requires_grad_(requires_grad=True)


def multiplied_reward(
    reward: RewardModel, images: Tensor, positive: Sequence[str], negative: Sequence[str], k: Tensor
) -> Rewards:
    """Return the relative reward (B,) of the paper's text, k·(r(p) − r(n)), with the discount as a factor."""
    return Rewards(k * relative_reward(reward, images, positive, negative, torch.zeros_like(k)).total)


def discount_outside(worker: Worker) -> None:
    """Multiply the reward by the discount, instead of weighting the wanted text in it."""
    inner, module = worker.learner.method, import_module("srpo_core.algorithm.srpo")

    def method(*inputs: Any) -> Iterator[LossTerm]:
        with patch.object(module, "relative_reward", multiplied_reward):
            yield from inner(*inputs)

    worker.learner = replace(worker.learner, method=method)


@dataclass(frozen=True)
class Quirk:
    """One run: the quirk's number and name, a patch of the settings `train`, and a change of the worker.

    instead: what is trained instead of the quirk: what it is compared with, or the closest that a CPU can compute.
    """

    number: str
    name: str
    patch: Mapping[str, Any]
    change: Change = nothing
    instead: str = ""


QUIRKS: Final = (
    Quirk("none", "the tiny profile, no quirk", {}),
    Quirk("2", "anomaly detection", {}, anomaly_mode),
    Quirk(
        "3",
        "guidance 1 in the rollout, 3.5 trained",
        {"rollout": {"guidance_scale": 1.0}, "direct_align": {"guidance_scale": 3.5}},
    ),
    Quirk("4, 9, 16", "time in whole thousandths, noise in bfloat16", {"reference": True}),
    Quirk("4b", "time in bfloat16", {}, coarse_time),
    Quirk(
        "6",
        "the discount multiplies the relative reward",
        {},
        discount_outside,
        instead="a multiplier k·⟨i, p − n⟩",
    ),
    Quirk("8", "gradients of the VAE's weights", {}, vae_gradients),
    Quirk("10", "one noise for all samples of a step", {"noise": "shared"}),
    Quirk("12", "hinge at 0.7", {"direct_align": {"margin": 0.7}}),
    Quirk(
        "13",
        "reward and transformer under bfloat16 autocast",
        {"compute": {"autocast": True}},
        instead="bf16 autocast",
    ),
    Quirk("15a", "inversion alone", {"direct_align": {"branches": ["inversion"]}}),
    Quirk("15b", "every branch twice", {"direct_align": {"branches": ["denoise", "inversion"] * 2}}),
    Quirk("D", "the reference's discounts", {"direct_align": {"discount_denoise": [0.1, 0.25]}}),
)


def with_quirk(settings: Settings, quirk: Quirk, steps: int) -> Settings:
    """Return the settings with the quirk's patch."""
    whole = {"steps": steps, "checkpoint_every": steps}
    train = with_patch(with_patch(settings.train.model_dump(), quirk.patch), whole)
    return settings.model_copy(update={"train": TrainSettings.model_validate(train)})


def trial(settings: Settings, quirk: Quirk, directory: Path, seeds: int) -> dict[str, float]:
    """Train with the quirk and measure; return the figures, and wall and CPU seconds per step."""
    worker = Worker(job_of(settings, directory), rank=0, world=1, device=torch.device("cpu"))
    quirk.change(worker)
    steps = settings.train.steps
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        for step in range(1, steps + 1):
            worker.step(step)
    finally:
        torch.autograd.set_detect_anomaly(False)
    seconds = {
        "seconds": (time.perf_counter() - wall) / steps,
        "cpu_seconds": (time.process_time() - cpu) / steps,
    }
    judged = figures(settings, worker.model, evaluation_images(settings, seeds), steps)
    return judged | seconds


def in_words(rows: Sequence[Mapping[str, Any]], plain: Mapping[str, Any]) -> str:
    """Summarize a quirk's effect for a table cell: style and subject by the judge, diversity, CPU time."""
    cells = []
    for row in rows:
        change = row["change"]
        share = 100 * change["cpu_seconds"] / plain["cpu_seconds"]
        name = f"{row['instead']} in its place: " if row["instead"] else ""
        name = f"{row['what']}: " if len(rows) > 1 else name
        cells.append(
            f"{name}wanted {change['judge_wanted']:+.3f}, top-1 {change['judge_top1']:+.3f}, "
            f"diversity {change['diversity']:+.3f}, CPU {share:+.0f} %"
        )
    return "; ".join(cells)


def with_effects(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the last column of its table filled in.

    15a and 15b share row 15; "4, 9, 16" fills row 4.
    """
    plain = rows[0]
    effects: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows[1:]:
        number = row["quirk"].split(", ")[0]
        effects.setdefault(number if number == "4b" else number.rstrip("ab"), []).append(row)
    lines = page.splitlines()
    for place, line in enumerate(lines):
        number = line.split(" | ")[0].removeprefix("| ")
        if line.startswith("| ") and number in effects:
            cells = line.removesuffix(" |").rsplit(" | ", 1)
            lines[place] = f"{cells[0]} | {in_words(effects[number], plain)} |"
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the chosen quirks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, help="images per step; default: as in the profile")
    parser.add_argument("--seeds", type=int, default=2, help="images of each of the 40 subjects")
    parser.add_argument("--only", nargs="+", choices=[quirk.number for quirk in QUIRKS])
    parser.add_argument("--table", type=Path, help="page whose table of quirks is updated")
    options = parser.parse_args()
    if options.seeds <= 1:
        parser.error("--seeds must be 2 or more: diversity compares the images of one prompt")
    torch.set_num_threads(1)
    settings = absolute(load_settings(ROOT / "profiles/tiny.yaml"))
    if options.batch_size:
        train = settings.train.model_copy(update={"batch_size": options.batch_size})
        settings = settings.model_copy(update={"train": train})
    chosen = [quirk for quirk in QUIRKS if not options.only or quirk.number in ("none", *options.only)]
    page = options.table.resolve() if options.table else None
    plain: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        train_prompts(settings)
        for quirk in chosen:
            row = trial(with_quirk(settings, quirk, options.steps), quirk, Path(place), options.seeds)
            plain = plain or row
            change = {name: round(value - plain[name], 4) for name, value in row.items() if name != "step"}
            rounded = {name: round(value, 4) for name, value in row.items()}
            about = {"quirk": quirk.number, "what": quirk.name, "instead": quirk.instead}
            rows.append({**about, **rounded, "change": change})
            print(json.dumps(rows[-1]), flush=True)
        os.chdir(ROOT)  # the temporary directory is deleted
    if page:
        page.write_text(with_effects(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
