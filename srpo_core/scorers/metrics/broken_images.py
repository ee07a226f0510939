"""Metrics that mark single images, 1 or 0: broken ones, and copies. The gate limits their share."""

import logging
from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor

from srpo_core.config import rewards_by_name
from srpo_core.protocols import Judge, RewardModel, TwoTowers
from srpo_core.scorers import broken, common_patterns
from srpo_core.scorers.broken import STATISTICS, Evidence, Scores
from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.metrics.metric import THIS_PROJECT, Compared, Metric, judge_licence
from srpo_core.scorers.metrics.styles_and_subjects import find_subject
from srpo_core.scorers.mixed import MixedReward
from srpo_core.scorers.registry import build_reward

log = logging.getLogger(__name__)

SCORERS: Final = 2  # reward and judge


def evidence(images: Tensor, prompt: str, context: MetricContext) -> tuple[list[Scores], Tensor]:
    """Score images (K, 3, H, W) of one prompt by reward and judge, and compute their statistics (K, S).

    A judge that classifies scores the logarithm of the subject's probability, one that reads texts the prompt itself.
    """
    judge = context.judge
    scored = [_by_text(context.reward, images, prompt)]
    scored.append(
        _by_subject(judge, images, prompt)
        if hasattr(judge, "subjects")
        else _by_text(cast(RewardModel, judge), images, prompt)
    )
    return scored, broken.statistics(images)


def broken_images(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where an image is broken that the base's image from the same noise is not, else 0. See `broken`.

    This function returns what decides about each image in one row, because the base's images are the measure.
    """
    scored, statistics = evidence(images, prompt, context)
    width = max(one.images.shape[1] for one in scored)
    padded = [
        torch.nn.functional.pad(rows, (0, width - rows.shape[1]))
        for one in scored
        for rows in (one.images, one.texts)
    ]
    return torch.cat([*padded, statistics], 1).float()


def broken_beside(own: Tensor, prompts: Tensor, base: Tensor, base_prompts: Tensor) -> Tensor:
    """Which images (P,) are broken, measured by images of the base from other noise; see `broken`.

    own: (P, D), base: (B, D), from `broken_images`; prompts: (P,), base_prompts: (B,), numbers of their prompts.
    """
    return broken.broken(_unpack(own, prompts), _unpack(base, base_prompts))


def copied_images(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where an image is a copy of an image of another prompt or of a training image, else 0. See `copies`.

    This function returns the outlines, (K, 3, h, w), because only all images together have copies.
    """
    del prompt, context
    return common_patterns.outlines(images)


def _by_text(scorer: RewardModel, images: Tensor, prompt: str) -> Scores:
    """Return the vectors whose product is the score of any of the images for any text.

    A mix joins those of its rewards. A scorer without towers has none: its rows are 0, by which no image is broken,
    because they do not tell the base's images of a prompt from others.
    """
    if isinstance(scorer, MixedReward):
        each = {name: _by_text(one, images, prompt) for name, one in scorer.rewards.items()}
        weighted = [scorer.weights[name] * one.images for name, one in each.items()]
        return Scores(torch.cat(weighted, 1), torch.cat([one.texts for one in each.values()], 1))
    if not isinstance(scorer, TwoTowers):
        nothing = torch.zeros(len(images), 1, device=images.device)
        return Scores(nothing, nothing)
    seen = scorer.scale * scorer.encode_images(images)
    return Scores(seen, scorer.encode_texts([prompt]).expand(len(images), -1))


def _by_subject(judge: Judge, images: Tensor, prompt: str) -> Scores:
    seen = judge.subject_logits(images).log_softmax(1)
    texts = torch.zeros_like(seen)
    texts[:, find_subject(prompt, judge.subjects)] = 1
    return Scores(seen, texts)


def _unpack(rows: Tensor, prompts: Tensor) -> Evidence:
    statistics = rows[:, -len(STATISTICS) :]
    parts = rows[:, : -len(STATISTICS)].chunk(2 * SCORERS, 1)
    scores = [Scores(parts[2 * index], parts[2 * index + 1]) for index in range(SCORERS)]
    return Evidence(prompts, scores, statistics)


def _lost(compared: Compared, context: MetricContext) -> Tensor:
    del context
    own, base = (_unpack(rows, compared.prompts) for rows in (compared.own, compared.base))
    return broken.lost(own, base)


def _copied(compared: Compared, context: MetricContext) -> Tensor:
    # data without real images, such as a list of prompts, give no batch
    known = [] if context.training is None else [common_patterns.outlines(one) for one in context.training()]
    training = torch.cat(known) if known else None
    return common_patterns.copies(compared.own, compared.prompts, compared.base, training)


def _repeated(compared: Compared, context: MetricContext) -> Tensor:
    del context
    return common_patterns.repeats(compared.own, compared.prompts, compared.base)


def _check(context: MetricContext, prompts: Sequence[str]) -> None:
    """Require that a judge of subjects knows the prompts', and warn of rewards that cannot tell broken images.

    Raises:
        DataError: the judge classifies subjects and does not know one of the prompts'.
    """
    for name, settings in rewards_by_name(context.reward_settings).items():
        with torch.device("meta"):
            has_towers = isinstance(build_reward(settings), TwoTowers)
        if not has_towers:
            log.warning(
                "%s: the scorer %s has no towers (encode_images, encode_texts), so broken images are found without it, by "
                "the judge, the other rewards and the statistics of the images alone",
                name,
                settings.scorer,
            )
    if hasattr(context.judge, "subjects"):
        for prompt in prompts:
            find_subject(prompt, context.judge.subjects)


BROKEN: Final = Metric(
    broken_images,
    (0, 1),
    THIS_PROJECT,
    "share of images that no longer fit their prompt or look like none of the base's, where the base's image does",
    judge_licence,
    check=_check,
    beside_base=_lost,
)
COPIED: Final = Metric(
    copied_images,
    (0, 1),
    THIS_PROJECT,
    "share of images that copy an image of another prompt or a training image",
    beside_base=_copied,
)
REPEATED: Final = Metric(
    copied_images,
    (0, 1),
    THIS_PROJECT,
    "share of images that repeat that of another seed, where the base's images differ",
    needs_seeds=True,
    beside_base=_repeated,
)
