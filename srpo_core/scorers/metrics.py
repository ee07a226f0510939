"""Metrics: figures of pictures, by the reward and by the judge.

A metric sees all pictures (K, 3, H, W) in [0, 1] of one prompt, one per seed, and gives one figure
per picture, (K,). To add one: a function, and a line in `METRICS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize as l2_normalize

from srpo_core.config import ControlWords, ScorerSettings
from srpo_core.errors import ConfigError, DataError, pick
from srpo_core.protocols import Judge, RewardModel
from srpo_core.scorers import load_judge, load_reward

TOP: Final = 5


@dataclass(frozen=True)
class MetricContext:
    """What metrics may ask for. A scorer is loaded when the first metric needs it."""

    reward_settings: ScorerSettings
    judge_settings: ScorerSettings
    control_words: ControlWords

    @cached_property
    def reward(self) -> RewardModel:
        """The reward that was trained against."""
        return load_reward(self.reward_settings)

    @cached_property
    def judge(self) -> Judge:
        """The judge that no training ever sees."""
        return load_judge(self.judge_settings)


def reward(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The plain reward <image, prompt>, in [-scale, scale]."""
    return _scores(images, [prompt], context)[:, 0]


def relative_reward(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """<image, "wanted. prompt"> - <image, "unwanted. prompt">, in [-2 scale, 2 scale].

    The mean over all pairs of control words, which is the mean over the wanted ones less the mean
    over the unwanted ones. Shen et al. 2025, section 3.3, without the discount.
    """
    words = context.control_words
    wanted = _scores(images, [f"{word}. {prompt}" for word in words.wanted], context)
    unwanted = _scores(images, [f"{word}. {prompt}" for word in words.unwanted], context)
    return wanted.mean(1) - unwanted.mean(1)


def judge_wanted(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The judge's probability that the style is one of the wanted ones, in [0, 1]."""
    del prompt  # a style is seen without it
    return context.judge.style_probabilities(images)[:, _wanted_styles(context)].sum(1)


def judge_top1(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where the judge's first guess is the prompt's subject, else 0."""
    return _subject_among_first(1, images, prompt, context)


def judge_top5(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where the prompt's subject is among the judge's first five guesses, else 0."""
    return _subject_among_first(TOP, images, prompt, context)


def diversity(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """Mean distance of each picture to the other seeds' pictures of its prompt, in [0, 2].

    The distance is Euclidean between the judge's features at unit length, sqrt(2 - 2 cosine): 0 means
    that all seeds give one picture. It is not free of style: pictures that all have the wanted style
    lie closer together than those of a base that draws several.
    """
    del prompt  # all images are of one prompt
    features = l2_normalize(context.judge.features(images), dim=-1)
    distances: Tensor = torch.linalg.vector_norm(features[:, None] - features[None, :], dim=-1)
    return torch.sum(distances, 1) / (len(images) - 1)


def _anything_goes(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    """No metric-specific precondition."""


def _styles_are_known(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    _wanted_styles(context)


def _subjects_are_known(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    for prompt in prompts:
        _subject(prompt, context.judge.subjects)


def _several_seeds(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    if num_seeds == 1:
        raise ConfigError(
            "metric 'diversity' compares the seeds of a prompt, but seeds_per_prompt is 1: "
            "set it to 2 or more in params.yaml, or drop the metric"
        )


@dataclass(frozen=True)
class Metric:
    """One entry of the registry `metrics`.

    figures: (images of one prompt, the prompt, context) -> one figure per image.
    check: raises before anything is drawn, if the metric could not be computed later.
    """

    figures: Callable[[Tensor, str, MetricContext], Tensor]
    check: Callable[[MetricContext, Sequence[str], int], None] = _anything_goes


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "reward": Metric(reward),
        "relative_reward": Metric(relative_reward),
        "judge_wanted": Metric(judge_wanted, _styles_are_known),
        "judge_top1": Metric(judge_top1, _subjects_are_known),
        "judge_top5": Metric(judge_top5, _subjects_are_known),
        "diversity": Metric(diversity, _several_seeds),
    }
)


def check_metrics(
    names: Sequence[str], context: MetricContext, prompts: Sequence[str], num_seeds: int
) -> None:
    """See, before hours of drawing, that every metric can be computed for these prompts.

    Raises:
        ConfigError: an unknown metric, a wanted word that is no style of the judge, too few seeds.
        DataError: a prompt whose subject the judge does not know.
    """
    for name in names:
        pick(METRICS, name, "metric").check(context, prompts, num_seeds)


@torch.no_grad()
def measure(
    names: Sequence[str], images: Tensor, prompt: str, context: MetricContext
) -> dict[str, list[float]]:
    """Figures by metric, one per image (K, 3, H, W) in [0, 1] of one prompt."""
    return {name: pick(METRICS, name, "metric").figures(images, prompt, context).tolist() for name in names}


def _scores(images: Tensor, texts: Sequence[str], context: MetricContext) -> Tensor:
    """Score every image against every text, (B, T)."""
    scorer = context.reward
    return scorer.scale * scorer.encode_images(images) @ scorer.encode_texts(texts).T


def _wanted_styles(context: MetricContext) -> list[int]:
    """Columns of the wanted styles, each once."""
    styles = list(context.judge.styles)
    unknown = [word for word in context.control_words.wanted if word not in styles]
    if unknown:
        raise ConfigError(
            f"metric 'judge_wanted': control_words.wanted {', '.join(unknown)} is no style of the judge: "
            f"known are {', '.join(styles)}"
        )
    return sorted({styles.index(word) for word in context.control_words.wanted})


def _subject_among_first(count: int, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    logits = context.judge.subject_logits(images)
    subject = _subject(prompt, context.judge.subjects)
    better = (logits > logits[:, subject : subject + 1]).sum(1)
    return (better < count).to(logits.dtype)


def _subject(prompt: str, subjects: Sequence[str]) -> int:
    """Index of the longest subject name with which the prompt ends, at a word's boundary."""
    text = f" {prompt.casefold()}"
    ends = [index for index, name in enumerate(subjects) if text.endswith(f" {name.casefold()}")]
    if not ends:
        raise DataError(
            f"prompt {prompt!r} ends with none of the judge's {len(subjects)} subjects "
            f"({', '.join(subjects[:3])}, ...): draw other prompts or drop the judge_top metrics"
        )
    return max(ends, key=lambda index: len(subjects[index]))
