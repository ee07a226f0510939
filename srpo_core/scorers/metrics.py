"""Metrics: figures of images, by the scorers and by plain arithmetic.

A metric sees all images (K, 3, H, W) in [0, 1] of one prompt, one per seed, and gives one figure
per image, (K,). To add one: a function, and a line in `METRICS`. Every scorer of `evaluate.scorers` adds
two metrics by its name: NAME, its plain score, and NAME_sgp, wanted over unwanted.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize as l2_normalize

from srpo_core.config import ControlWords, ScorerSettings
from srpo_core.errors import ConfigError, DataError, pick
from srpo_core.protocols import Judge, RewardModel
from srpo_core.scorers import SCORERS, image_statistics, load_reward, load_scorer
from srpo_core.scorers.kernel_distance import kernel_distances
from srpo_core.scorers.packages import require_package

OURS: Final = "this project"
OUR_LICENCE: Final = "Apache-2.0"
TOP: Final = 5
SGP: Final = "_sgp"
LEAST_REAL: Final = 2  # a distance between images of one kind needs two


@dataclass(frozen=True)
class MetricContext:
    """What metrics may ask for. A scorer is loaded when the first metric needs it.

    scorer_settings: further scorers by name; real: gives the images that the metric kid compares with, in
    batches (R, 3, H, W) in [0, 1].
    """

    reward_settings: ScorerSettings
    judge_settings: ScorerSettings
    control_words: ControlWords
    scorer_settings: Mapping[str, ScorerSettings] = field(default_factory=dict)
    real: Callable[[], Iterable[Tensor]] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def reward(self) -> RewardModel:
        """The reward that was trained against."""
        return load_reward(self.reward_settings).to(self.device)

    @cached_property
    def judge(self) -> Any:
        """The judge that no training ever sees: a `Judge`, or a `RewardModel` where images have no known styles."""
        return load_scorer(self.judge_settings).to(self.device)

    @cached_property
    def scorers(self) -> Mapping[str, RewardModel]:
        """The further scorers."""
        return {name: load_reward(one).to(self.device) for name, one in self.scorer_settings.items()}

    @cached_property
    @torch.no_grad()
    def real_features(self) -> Tensor:
        """The judge's features of the real images; of those in the wanted style, if it knows styles."""
        assert self.real is not None, "checked before anything is drawn"
        kept = []
        for batch in self.real():
            images = batch.to(self.device)
            features = _kernel_features(images, self)
            if hasattr(self.judge, "styles"):
                wanted = self.judge.style_probabilities(images)[:, _wanted_styles(self)].sum(1)
                features = features[wanted > 1 / 2]
            kept.append(features)
        return torch.cat(kept).cpu()

    @property
    def classifier(self) -> Judge:
        """The judge as one that knows styles and subjects; another kind is a `ConfigError`."""
        if SCORERS[self.judge_settings.scorer].differentiable:
            raise ConfigError(
                f"the judge {self.judge_settings.scorer} scores images against texts and knows no styles or subjects: "
                "measure judge_score and judge_sgp with it in place of judge_wanted, judge_top1 and judge_top5"
            )
        return cast(Judge, self.judge)

    @property
    def text_judge(self) -> RewardModel:
        """The judge as one that scores images against texts; another kind is a `ConfigError`."""
        if not SCORERS[self.judge_settings.scorer].differentiable:
            raise ConfigError(
                f"the judge {self.judge_settings.scorer} names styles and subjects and reads no texts: "
                "measure judge_wanted, judge_top1 and judge_top5 with it in place of judge_score and judge_sgp"
            )
        return cast(RewardModel, self.judge)


def reward(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The plain reward <image, prompt>, in [-1, 1] times the scorer's scale."""
    return _plain(context.reward, images, prompt)


def relative_reward(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The reward's SGP, in [-2, 2] times the scorer's scale; see `sgp`."""
    return sgp(context.reward, images, prompt, context.control_words)


def judge_score(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The plain score of a judge that reads texts, in [-1, 1] times its scale."""
    return _plain(context.text_judge, images, prompt)


def judge_sgp(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The SGP of a judge that reads texts, in [-2, 2] times its scale; see `sgp`."""
    return sgp(context.text_judge, images, prompt, context.control_words)


def sgp(scorer: RewardModel, images: Tensor, prompt: str, words: ControlWords) -> Tensor:
    """<image, "wanted. prompt"> - <image, "unwanted. prompt"> by any scorer, (K,).

    The mean over the wanted control words less the mean over the unwanted ones, each word with its weight,
    as often as training draws it. Shen et al. 2025, section 3.3 and table 1 (SGP-HPS), without the discount.
    """
    wanted = _scores(scorer, images, [f"{word}. {prompt}" for word in words.wanted])
    unwanted = _scores(scorer, images, [f"{word}. {prompt}" for word in words.unwanted])
    return _weighted_mean(wanted, words.pair.wanted) - _weighted_mean(unwanted, words.pair.unwanted)


def _weighted_mean(scores: Tensor, words: Mapping[str, float]) -> Tensor:
    """Mean of the scores (K, W) over the words by their weights, (K,)."""
    weights = scores.new_tensor(list(words.values()))
    return scores @ (weights / weights.sum())


def judge_wanted(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """The judge's probability that the style is one of the wanted ones, in [0, 1]."""
    del prompt  # a style is seen without it
    return context.classifier.style_probabilities(images)[:, _wanted_styles(context)].sum(1)


def judge_top1(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where the judge's first guess is the prompt's subject, else 0."""
    return _subject_among_first(1, images, prompt, context)


def judge_top5(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """1 where the prompt's subject is among the judge's first five guesses, else 0."""
    return _subject_among_first(TOP, images, prompt, context)


def diversity(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """Mean distance of each image to the other seeds' images of its prompt, in [0, 2].

    The distance is Euclidean between the judge's features at unit length, sqrt(2 - 2 cosine): 0 means
    that all seeds give one image. It is not free of style: images that all have the wanted style
    lie closer together than those of a base that draws several.
    """
    del prompt  # all images are of one prompt
    features = l2_normalize(encode(images, context), dim=-1)
    distances: Tensor = torch.linalg.vector_norm(features[:, None] - features[None, :], dim=-1)
    return torch.sum(distances, 1) / (len(images) - 1)


def encode(images: Tensor, context: MetricContext) -> Tensor:
    """The judge's features of the images, (K, D)."""
    judge = context.judge
    features: Tensor = judge.features(images) if hasattr(judge, "features") else judge.encode_images(images)
    return features


def kid(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """Kernel distance to the data's preferred images, in [-inf, inf]: 0 is none; see `kernel_distances`.

    On the judge's features; if the judge knows styles, to the images in the wanted one. This function
    gives the features (K, D), as only all images together have a distance.
    """
    del prompt
    return _kernel_features(images, context)


def _kernel_features(images: Tensor, context: MetricContext) -> Tensor:
    """The judge's features as the kernel wants them, whose unit is a coordinate of order 1, (K, D).

    A judge that reads texts gives vectors of length 1, which the kernel would hardly tell apart; at length
    sqrt(D) its <x, y> / D is their cosine.
    """
    features = encode(images, context)
    return features if hasattr(context.judge, "features") else features * features.shape[-1] ** 0.5


def _of_pixels(statistic: Callable[[Tensor], Tensor]) -> Callable[[Tensor, str, MetricContext], Tensor]:
    """A metric of the pixels alone."""

    def figures(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
        del prompt, context
        return statistic(images)

    figures.__doc__ = statistic.__doc__
    return figures


def _anything_goes(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    """No metric-specific precondition."""


def _styles_are_known(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    _wanted_styles(context)


def _subjects_are_known(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    for prompt in prompts:
        _subject(prompt, context.classifier.subjects)


def _judge_reads_texts(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    _ = context.text_judge


def _real_images_are_there(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    require_package("torchmetrics", "the metric kid")
    if context.real is None:
        raise ConfigError(
            "metric 'kid' compares with real images, which only the stage evaluate reads: drop it here"
        )
    if len(context.real_features) < LEAST_REAL:
        raise DataError(
            f"metric 'kid' needs two preferred images of held-out pairs in the wanted look; the judge sees "
            f"{len(context.real_features)}: add pairs, raise evaluate.real_images, or drop the metric"
        )


def _several_seeds(context: MetricContext, prompts: Sequence[str], num_seeds: int) -> None:
    if num_seeds == 1:
        raise ConfigError(
            "metric 'diversity' compares the seeds of a prompt, but seeds_per_prompt is 1: "
            "set it to 2 or more in params.yaml, or drop the metric"
        )


def _our_licence(context: MetricContext) -> str:
    del context  # arithmetic of this project
    return OUR_LICENCE


def _licence_of_reward(context: MetricContext) -> str:
    return _licence(context.reward_settings)


def _licence_of_judge(context: MetricContext) -> str:
    return _licence(context.judge_settings)


def _licence(settings: ScorerSettings) -> str:
    return pick(SCORERS, settings.scorer, "scorer").licence


@dataclass(frozen=True)
class Metric:
    """One entry of the registry `metrics`.

    figures: (images of one prompt, the prompt, context) -> one figure per image.
    range: least and greatest figure, in units of the scorer's scale if there is one.
    source: where it is defined.
    licence: (context) -> SPDX; of the scorer's weights, or of this project's code where no scorer measures.
    check: raises before anything is drawn, if the metric could not be computed later.
    over_all: where only all images of a model together have a figure: from what `figures` gave for all of
    them, (P, D), to one figure per image.
    """

    figures: Callable[[Tensor, str, MetricContext], Tensor]
    range: tuple[float, float]
    source: str
    licence: Callable[[MetricContext], str] = _our_licence
    check: Callable[[MetricContext, Sequence[str], int], None] = _anything_goes
    over_all: Callable[[Tensor, MetricContext], Tensor] | None = None


RESERVED: Final = frozenset({"pixels"})  # under which images lie beside their figures
UNBOUNDED: Final = (float("-inf"), float("inf"))

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "reward": Metric(reward, (-1, 1), "the scorer of the setting reward", _licence_of_reward),
        "relative_reward": Metric(
            relative_reward, (-2, 2), "arXiv 2509.06942, table 1, SGP", _licence_of_reward
        ),
        "judge_wanted": Metric(judge_wanted, (0, 1), OURS, _licence_of_judge, _styles_are_known),
        "judge_top1": Metric(judge_top1, (0, 1), OURS, _licence_of_judge, _subjects_are_known),
        "judge_top5": Metric(judge_top5, (0, 1), OURS, _licence_of_judge, _subjects_are_known),
        "judge_score": Metric(
            judge_score, (-1, 1), "the scorer of the setting judge", _licence_of_judge, _judge_reads_texts
        ),
        "judge_sgp": Metric(
            judge_sgp, (-2, 2), "arXiv 2509.06942, table 1, SGP", _licence_of_judge, _judge_reads_texts
        ),
        "diversity": Metric(diversity, (0, 2), OURS, _licence_of_judge, _several_seeds),
        "kid": Metric(
            kid,
            UNBOUNDED,
            "arXiv 1801.01401; torchmetrics",
            _licence_of_judge,
            _real_images_are_there,
            over_all=lambda features, context: kernel_distances(features, context.real_features),
        ),
        "saturation": Metric(_of_pixels(image_statistics.saturation), (0, 1), OURS),
        "red_over_green": Metric(_of_pixels(image_statistics.red_over_green), (-1, 1), OURS),
        "yellow_over_blue": Metric(_of_pixels(image_statistics.yellow_over_blue), (-1, 1), OURS),
        "clipped_highlights": Metric(_of_pixels(image_statistics.clipped_highlights), (0, 1), OURS),
        "high_frequency_energy": Metric(_of_pixels(image_statistics.high_frequency_energy), (0, 1), OURS),
        "grid_energy": Metric(_of_pixels(image_statistics.grid_energy), (0, 1), OURS),
    }
)


# What the judge must be for: a `Judge` of styles and subjects, or a scorer that reads texts.
OF_STYLES: Final = frozenset({"judge_wanted", "judge_top1", "judge_top5"})
OF_TEXTS: Final = frozenset({"judge_score", "judge_sgp"})


def metric_names(metrics: Sequence[str], scorers: Sequence[str]) -> list[str]:
    """All metrics that settings ask for, each once: those of the registry, and two of each further scorer."""
    return list(dict.fromkeys([*metrics, *(name for one in scorers for name in (one, one + SGP))]))


def find_metric(name: str, context: MetricContext) -> Metric:
    """The metric of this name. Raises `ConfigError` when neither registry nor further scorers know it."""
    scorer = name.removesuffix(SGP)
    if name in METRICS or scorer not in context.scorer_settings:
        return pick(METRICS, name, "metric")
    figures, limit = (_plain_of, 1) if name == scorer else (_sgp_of, 2)
    entry = pick(SCORERS, context.scorer_settings[scorer].scorer, "scorer")
    return Metric(partial(figures, scorer), (-limit, limit), entry.source, lambda _: entry.licence)


def require_free_names(scorers: Collection[str]) -> None:
    """Raise `ConfigError` when a further scorer, or its metric of both words, is called as another metric is."""
    for name in scorers:
        if name in RESERVED or {name, name + SGP} & METRICS.keys() or name + SGP in scorers:
            raise ConfigError(
                f"evaluate.scorers: {name!r} is the name of a metric, or {name + SGP!r} is: give the scorer another one"
            )


def check_metrics(
    names: Sequence[str], context: MetricContext, prompts: Sequence[str], num_seeds: int
) -> None:
    """See, before hours of drawing, that every metric can be computed for these prompts.

    Raises:
        ConfigError: an unknown metric, a wanted word that is no style of the judge, too few seeds, a scorer
            with a metric's name.
        DataError: a prompt whose subject the judge does not know, too few real images.
    """
    require_free_names(context.scorer_settings)
    for name in names:
        find_metric(name, context).check(context, prompts, num_seeds)


@torch.no_grad()
def measure(names: Sequence[str], images: Tensor, prompt: str, context: MetricContext) -> dict[str, Tensor]:
    """By metric, one figure per image (K, 3, H, W) in [0, 1] of one prompt, (K,), on the CPU.

    Of a metric over all images, what it needs from each, (K, D); see `finish`.
    """
    images = images.to(context.device)
    return {name: find_metric(name, context).figures(images, prompt, context).cpu() for name in names}


@torch.no_grad()
def finish(name: str, found: Tensor, context: MetricContext) -> Tensor:
    """What `measure` found for all images of a model, (P,) or (P, D), as one figure per image, (P,)."""
    over_all = find_metric(name, context).over_all
    return found if over_all is None else over_all(found, context)


def _plain(scorer: RewardModel, images: Tensor, prompt: str) -> Tensor:
    return _scores(scorer, images, [prompt])[:, 0]


def _plain_of(name: str, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    return _plain(context.scorers[name], images, prompt)


def _sgp_of(name: str, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    return sgp(context.scorers[name], images, prompt, context.control_words)


def _scores(scorer: RewardModel, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Score every image against every text, (B, T)."""
    return scorer.scale * scorer.encode_images(images) @ scorer.encode_texts(texts).T


def _wanted_styles(context: MetricContext) -> list[int]:
    """Columns of the wanted styles, each once."""
    styles = list(context.classifier.styles)
    unknown = [word for word in context.control_words.wanted if word not in styles]
    if unknown:
        raise ConfigError(
            f"metric 'judge_wanted': control_words.wanted {', '.join(unknown)} is no style of the judge: "
            f"known are {', '.join(styles)}"
        )
    return sorted({styles.index(word) for word in context.control_words.wanted})


def _subject_among_first(count: int, images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    logits = context.classifier.subject_logits(images)
    subject = _subject(prompt, context.classifier.subjects)
    # the subject ties with itself; a tie with another one is not found
    better = (logits >= logits[:, subject : subject + 1]).sum(1) - 1
    return torch.where(logits.isfinite().all(1), (better < count).to(logits.dtype), torch.nan)


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
