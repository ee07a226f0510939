"""Early stop: training ends when its images get worse for a judge and better for the reward.

The judge is `select_judge`, which may also choose the checkpoint; the gate's judge never influences training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from srpo_core.config import EarlyStop, GenerateSettings
from srpo_core.generation.images import ImageSet, generate_and_measure, mean_figures
from srpo_core.protocols import BaseModel
from srpo_core.scorers.metrics import MetricContext, check_metrics
from srpo_core.training.batch import TrainingPrompts
from srpo_core.training.job import TrainJob

BASE_PREFIX: Final = "base_"  # of the base's figures, which are in the row of the first step


@dataclass(frozen=True)
class Evaluator:
    """Generates the same images from the same noise at each evaluation, and measures them."""

    rule: EarlyStop
    image_set: ImageSet
    generate: GenerateSettings
    context: MetricContext

    def evaluate(self, model: BaseModel) -> dict[str, float]:
        """Return the means of metric and objective over the images that the model generates now."""
        metrics = [self.rule.metric, self.rule.objective]
        measured = generate_and_measure(
            model, "the model", self.image_set, generate=self.generate, metrics=metrics, context=self.context
        )
        return mean_figures(measured, metrics)


def make_evaluator(
    job: TrainJob, prompts: TrainingPrompts, *, device: torch.device, world: int = 1
) -> Evaluator | None:
    """Return the evaluator that the settings ask for, on the first training prompts; None without early stop.

    Each of `world` workers generates all images, in batches as large as those that it trains on.

    Raises:
        ConfigError, DataError: the metric cannot be computed for these prompts.
    """
    rule, roll = job.train.early_stop, job.train.rollout
    if rule is None:
        return None
    rows = slice(min(rule.num_prompts, len(prompts.texts)))
    condition = prompts.condition[rows].to(device)
    image_set = ImageSet(
        "early stop", prompts.texts[rows], prompts.styles[rows], condition, rule.seeds_per_prompt, job.seed
    )
    context = MetricContext(job.reward, job.select_judge, job.control_words, device=device)
    check_metrics([rule.metric, rule.objective], context, image_set.prompts, rule.seeds_per_prompt)
    generate = GenerateSettings(
        num_inference_steps=roll.num_inference_steps,
        guidance_scale=roll.guidance_scale,
        batch_size=-(-job.train.batch_size // world),
        autocast=job.train.compute.autocast,
    )
    return Evaluator(rule, image_set, generate, context)


@dataclass(frozen=True)
class Evaluation:
    """The judge's figure and the objective of the base (step 0) or of a checkpoint, on the same images."""

    step: int
    figure: float
    objective: float


def early_stop_reason(rows: Sequence[Mapping[str, float]], rule: EarlyStop | None) -> str | None:
    """Return why a run with these metrics, one row per step, has to end after the last row; None if it continues.

    It ends when, at each of the last `rule.patience` checkpoints, the judge's figure was more than `rule.margin`
    below the best one before it, while the objective was above its value there.
    """
    if rule is None or not rows or rule.metric not in rows[-1]:
        return None
    found = evaluations(rows, rule)
    falls = [_best_before_fall(found[:place], now, rule) for place, now in enumerate(found) if place]
    last = falls[-rule.patience :]
    if len(last) < rule.patience or not all(last):
        return None
    best, now = last[-1], found[-1]
    assert best is not None
    return (
        f"{rule.metric} of the judge select_judge fell from {best.figure:.3f} (step {best.step}) to {now.figure:.3f} "
        f"(step {now.step}), more than {rule.margin} at {rule.patience} checkpoints in a row, while {rule.objective} "
        f"went from {best.objective:.3f} to {now.objective:.3f}"
    )


def evaluations(rows: Sequence[Mapping[str, float]], rule: EarlyStop) -> list[Evaluation]:
    """Return the evaluations of the base and of the checkpoints, in order."""
    first = rows[0]
    base = Evaluation(0, first[BASE_PREFIX + rule.metric], first[BASE_PREFIX + rule.objective])
    return [base] + [
        Evaluation(step, row[rule.metric], row[rule.objective])
        for step, row in enumerate(rows, start=1)
        if rule.metric in row
    ]


def _best_before_fall(before: Sequence[Evaluation], now: Evaluation, rule: EarlyStop) -> Evaluation | None:
    """Return the best of `before` if `now` is worse although its objective is better."""
    best = max(before, key=lambda evaluation: evaluation.figure)
    fallen = now.figure < best.figure - rule.margin and now.objective > best.objective
    return best if fallen else None
