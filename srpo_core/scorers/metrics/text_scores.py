"""Metrics of scorers that read texts: the plain score, and the score of the wanted words over the unwanted ones."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from torch import Tensor

from srpo_core.config import ControlWords
from srpo_core.errors import pick
from srpo_core.protocols import RewardModel
from srpo_core.scorers.entry import ScorerEntry
from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.metrics.metric import Metric, Range, judge_licence, reward_licence
from srpo_core.scorers.registry import SCORERS

SGP_SOURCE: Final = "arXiv 2509.06942, table 1, SGP"


def reward(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The plain reward, the weighted sum of the rewards, in [low, high] of `reward_range`."""
    return _plain(context.reward, images, prompt)


def relative_reward(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The reward's SGP, in [low - high, high - low] of `reward_range`; see `sgp`."""
    return sgp(context.reward, images, prompt, context.control_words)


def judge_score(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The plain score of a judge that reads texts, in [low, high] of its registry entry."""
    return _plain(context.text_judge, images, prompt)


def judge_sgp(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The SGP of a judge that reads texts, in [low - high, high - low] of its registry entry; see `sgp`."""
    return sgp(context.text_judge, images, prompt, context.control_words)


def sgp(scorer: RewardModel, images: Tensor, prompt: str, words: ControlWords) -> Tensor:
    """Compute the score for "wanted. prompt" minus the score for "unwanted. prompt" by any scorer, (K,).

    The mean over the wanted control words minus the mean over the unwanted ones. Each word has its weight, which is
    how often training uses it. Shen et al. 2025, section 3.3 and table 1 (SGP-HPS), without the discount.
    """
    wanted = _scores(scorer, images, [f"{word}. {prompt}" for word in words.wanted])
    unwanted = _scores(scorer, images, [f"{word}. {prompt}" for word in words.unwanted])
    return _weighted_mean(wanted, words.pair.wanted) - _weighted_mean(unwanted, words.pair.unwanted)


def reward_range(context: MetricContext) -> Range:
    """Add up the lowest and the highest scores of the run's rewards, each times its weight."""
    ranges = [(one.weight, pick(SCORERS, one.scorer, "scorer").range) for one in context.reward_settings]
    return sum(weight * low for weight, (low, _) in ranges), sum(
        weight * high for weight, (_, high) in ranges
    )


def judge_range(context: MetricContext) -> Range:
    """Return the lowest and the highest score of the judge."""
    return pick(SCORERS, context.judge_settings.scorer, "scorer").range


def sgp_range(score: Range) -> Range:
    """Return the lowest and the highest difference of two scores of this range."""
    low, high = score
    return low - high, high - low


def metrics_of_scorer(name: str, key: str, entry: ScorerEntry) -> tuple[Metric, Metric]:
    """The two metrics of a further scorer: its plain score and its SGP.

    name: what `evaluate.scorers` calls it; key: its name in the registry `scorers`.
    """
    measured_by = f"by the further scorer {name} ({key})"
    return (
        Metric(
            partial(_plain_of_scorer, name),
            entry.range,
            entry.source,
            f"how well the image fits its prompt, {measured_by}",
            lambda _: entry.licence,
        ),
        Metric(
            partial(_sgp_of_scorer, name),
            sgp_range(entry.range),
            entry.source,
            "how much better the image fits its prompt with the wanted words than with the unwanted ones, "
            f"{measured_by}",
            lambda _: entry.licence,
        ),
    )


def _plain_of_scorer(name: str, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    return _plain(context.scorers[name], images, prompt)


def _sgp_of_scorer(name: str, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    return sgp(context.scorers[name], images, prompt, context.control_words)


def _plain(scorer: RewardModel, images: Tensor, prompt: str) -> Tensor:
    return _scores(scorer, images, [prompt])[:, 0]


def _scores(scorer: RewardModel, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Score every image against every text, (K, T)."""
    rounds = [text for text in texts for _ in images]
    return scorer.score(images, rounds).view(len(texts), len(images)).T


def _weighted_mean(scores: Tensor, words: Mapping[str, float]) -> Tensor:
    """Mean of the scores (K, W) over the words by their weights, (K,)."""
    weights = scores.new_tensor(list(words.values()))
    return scores @ (weights / weights.sum())


REWARD: Final = Metric(
    reward,
    reward_range,
    "the scorers of the setting rewards",
    "how well the image fits its prompt, by the model that was trained against",
    reward_licence,
)
RELATIVE_REWARD: Final = Metric(
    relative_reward,
    lambda context: sgp_range(reward_range(context)),
    SGP_SOURCE,
    "how much better the image fits its prompt with the wanted words than with the unwanted ones, by the model that "
    "was trained against",
    reward_licence,
)
JUDGE_SCORE: Final = Metric(
    judge_score,
    judge_range,
    "the scorer of the setting judge",
    "how well the image fits its prompt, by a judge that was never trained against",
    judge_licence,
    judge="texts",
)
JUDGE_SGP: Final = Metric(
    judge_sgp,
    lambda context: sgp_range(judge_range(context)),
    SGP_SOURCE,
    "how much better the image fits its prompt with the wanted words than with the unwanted ones, by a judge that "
    "was never trained against",
    judge_licence,
    judge="texts",
)
