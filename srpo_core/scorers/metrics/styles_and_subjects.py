"""Metrics of a judge that classifies styles and subjects."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from srpo_core.errors import DataError
from srpo_core.scorers.metrics.context import MetricContext, wanted_styles
from srpo_core.scorers.metrics.metric import THIS_PROJECT, Metric, judge_licence
from srpo_core.scorers.subjects import subject_of

TOP: Final = 5


def judge_wanted(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The judge's probability that the style is one of the wanted ones, in [0, 1]."""
    del prompt  # the style does not depend on it
    return context.classifier.style_probabilities(images)[:, wanted_styles(context)].sum(1)


def judge_top1(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where the judge's first guess is the prompt's subject, else 0."""
    return _subject_is_among_first(1, images, prompt, context)


def judge_top5(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where the prompt's subject is among the judge's first five guesses, else 0."""
    return _subject_is_among_first(TOP, images, prompt, context)


def _subject_is_among_first(count: int, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    logits = context.classifier.subject_logits(images)
    subject = find_subject(prompt, context.classifier.subjects)
    # The subject equals itself, hence -1. A subject that ties with others counts as ranked after them.
    better = (logits >= logits[:, subject : subject + 1]).sum(1) - 1
    return torch.where(logits.isfinite().all(1), (better < count).to(logits.dtype), torch.nan)


def find_subject(prompt: str, subjects: Sequence[str]) -> int:
    """Index of the longest subject name that the prompt ends with, at a word boundary."""
    subject = subject_of(prompt, subjects)
    if subject is None:
        raise DataError(
            f"prompt {prompt!r} ends with none of the judge's {len(subjects)} subjects "
            f"({', '.join(subjects[:3])}, ...): use other prompts, or drop the metrics judge_top1 and judge_top5"
        )
    return subject


def _require_known_styles(context: MetricContext, prompts: Sequence[str]) -> None:
    del prompts
    wanted_styles(context)


def _require_known_subjects(context: MetricContext, prompts: Sequence[str]) -> None:
    for prompt in prompts:
        find_subject(prompt, context.classifier.subjects)


JUDGE_WANTED: Final = Metric(
    judge_wanted,
    (0, 1),
    THIS_PROJECT,
    "probability of the wanted style, by a judge that was never trained against",
    judge_licence,
    judge="styles",
    check=_require_known_styles,
)
JUDGE_TOP1: Final = Metric(
    judge_top1,
    (0, 1),
    THIS_PROJECT,
    "share of images in which the judge's first guess is the prompt's subject",
    judge_licence,
    judge="styles",
    check=_require_known_subjects,
)
JUDGE_TOP5: Final = Metric(
    judge_top5,
    (0, 1),
    THIS_PROJECT,
    "share of images in which the prompt's subject is among the judge's first five guesses",
    judge_licence,
    judge="styles",
    check=_require_known_subjects,
)
