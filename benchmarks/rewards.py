"""Measure what a mix of rewards changes: train the tiny profile by one reward, by another, and by their sum.

    python benchmarks/rewards.py --steps 20 --seeds 2

The second reward is no cosine: the log-probability, by the judge of select, of the style that a text's control word
names. All runs have the same base, prompts, noise and number of optimizer steps. The gate's judge, which none of them
uses, classifies images of subjects that are not in the training prompts. Prints one JSON line per run: the figures
and the CPU seconds of a step. There is one run each and no interval, so a difference below about .03 (of 80 images) is
not significant.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import torch
from quirks import Quirk, trial, with_quirk
from torch import Tensor
from trial import ROOT, absolute, train_prompts

from srpo_core.config import ScorerSettings, load_settings
from srpo_core.scorers import load_scorer
from srpo_core.scorers.mixed import MixedReward
from srpo_core.training.worker import Worker

LEAST: Final = 1e-6  # probability: the logarithm of less has no useful gradient
MIXES: Final[Mapping[str, Mapping[str, float]]] = {
    "clip": {"clip": 1.0},
    "style": {"style": 0.1},
    "clip + 0.02 style": {"clip": 1.0, "style": 0.02},
    "clip + 0.1 style": {"clip": 1.0, "style": 0.1},
}


class StyleReward:
    """A reward by a judge: the log-probability of the style before the first ". " of a text."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge

    def to(self, device: torch.device) -> Self:
        """Move the judge to a device, in place."""
        self.judge.to(device)
        return self

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Score images (B, 3, H, W) against rounds of texts; see `RewardModel.score`."""
        styles = [self.judge.styles.index(text.partition(". ")[0]) for text in texts]
        scores = self.judge.style_probabilities(images).clamp_min(LEAST).log()
        return scores.repeat(len(texts) // len(images), 1)[range(len(texts)), styles]


def use(worker: Worker, weights: Mapping[str, float], judge: ScorerSettings) -> None:
    """Make a worker maximize the weighted sum of its own reward, `clip`, and of `style`, as `weights` has them."""
    known = {"clip": worker.learner.reward, "style": StyleReward(load_scorer(judge).to(worker.device))}
    mix = MixedReward({name: known[name] for name in weights}, weights)
    worker.learner = replace(worker.learner, reward=mix)


def main() -> None:
    """Train and measure each mix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2, help="images of each of the 40 subjects")
    options = parser.parse_args()
    if options.seeds <= 1:
        parser.error("--seeds must be 2 or more: diversity compares the images of one prompt")
    torch.set_num_threads(1)
    settings = absolute(load_settings(ROOT / "profiles/tiny.yaml"))
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        train_prompts(settings)
        for name, weights in MIXES.items():

            def change(worker: Worker, weights: Mapping[str, float] = weights) -> None:
                use(worker, weights, settings.select_judge)

            run = Quirk(name, name, {}, change)
            row = trial(with_quirk(settings, run, options.steps), run, Path(place), options.seeds)
            print(
                json.dumps({"rewards": name} | {key: round(one, 4) for key, one in row.items()}), flush=True
            )
        os.chdir(ROOT)  # the temporary directory is deleted


if __name__ == "__main__":
    main()
