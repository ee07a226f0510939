"""Early stop: training ends when its images get worse for a judge and better for the reward.

The judge is the one that may choose a checkpoint (`select_judge`); the gate's judge never steers training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch

from srpo_core.config import ControlWords, EarlyStop, GenerateSettings, ScorerSettings, TrainSettings
from srpo_core.generation.images import ImageSet, generate_and_measure, mean_figures
from srpo_core.models.embeddings import read_embeddings
from srpo_core.protocols import BaseModel
from srpo_core.scorers.metrics import MetricContext, check_metrics

BASE: Final = "base_"  # the first step's row also holds what the judge said of the base


@dataclass(frozen=True)
class Watch:
    """What is drawn at each checkpoint, always from the same noise, and how it is judged."""

    rule: EarlyStop
    image_set: ImageSet
    generate: GenerateSettings
    context: MetricContext

    @classmethod
    def over(
        cls,
        train: TrainSettings,
        *,
        seed: int,
        reward: ScorerSettings,
        judge: ScorerSettings,
        words: ControlWords,
        device: torch.device,
        world: int = 1,
    ) -> Self | None:
        """The watch that the settings ask for, or None. Shows the first training prompts.

        Each of `world` workers draws all of them, as many at once as it trains.

        Raises:
            ConfigError, DataError: the metric cannot be computed for these prompts.
        """
        rule = train.early_stop
        if rule is None:
            return None
        texts, styles, condition = read_embeddings("train")
        rows = slice(min(rule.num_prompts, len(texts)))
        image_set = ImageSet(
            "early stop", texts[rows], styles[rows], condition[rows].to(device), rule.seeds_per_prompt, seed
        )
        context = MetricContext(reward, judge, words, device=device)
        check_metrics([rule.metric, rule.objective], context, image_set.prompts, rule.seeds_per_prompt)
        roll = train.rollout
        generate = GenerateSettings(
            num_inference_steps=roll.num_inference_steps,
            guidance_scale=roll.guidance_scale,
            batch_size=-(-train.batch_size // world),
            autocast=train.compute.autocast,
        )
        return cls(rule, image_set, generate, context)

    def figures(self, model: BaseModel) -> dict[str, float]:
        """Means of metric and objective over the images that the model draws now."""
        metrics = [self.rule.metric, self.rule.objective]
        measured = generate_and_measure(
            model, "the model", self.image_set, generate=self.generate, metrics=metrics, context=self.context
        )
        return mean_figures(measured, metrics)


@dataclass(frozen=True)
class Judged:
    """The base (step 0) or a checkpoint, as the judge and as the reward saw the same images."""

    step: int
    figure: float
    objective: float


def over_trained(rows: Sequence[Mapping[str, float]], rule: EarlyStop | None) -> str | None:
    """Why a run with these metrics, one row per step, has to end after the last of them; None if it may go on.

    It ends when at each of the last `rule.patience` checkpoints the judge's figure lay more than `rule.margin`
    below the best one before it, and the objective above its value there.
    """
    if rule is None or not rows or rule.metric not in rows[-1]:
        return None
    seen = judged(rows, rule)
    falls = [_best_before_fall(seen[:place], now, rule) for place, now in enumerate(seen) if place]
    last = falls[-rule.patience :]
    if len(last) < rule.patience or not all(last):
        return None
    best, now = last[-1], seen[-1]
    assert best is not None
    return (
        f"{rule.metric} of the judge select_judge fell from {best.figure:.3f} (step {best.step}) to {now.figure:.3f} "
        f"(step {now.step}), more than {rule.margin} at {rule.patience} checkpoints in a row, while {rule.objective} "
        f"went from {best.objective:.3f} to {now.objective:.3f}"
    )


def judged(rows: Sequence[Mapping[str, float]], rule: EarlyStop) -> list[Judged]:
    """The base and the checkpoints that were judged, in their order."""
    first = rows[0]
    base = Judged(0, first[BASE + rule.metric], first[BASE + rule.objective])
    return [base] + [
        Judged(step, row[rule.metric], row[rule.objective])
        for step, row in enumerate(rows, start=1)
        if rule.metric in row
    ]


def _best_before_fall(before: Sequence[Judged], now: Judged, rule: EarlyStop) -> Judged | None:
    """The best of `before`, if `now` is worse although its objective is better."""
    best = max(before, key=lambda seen: seen.figure)
    fallen = now.figure < best.figure - rule.margin and now.objective > best.objective
    return best if fallen else None
