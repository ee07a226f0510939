"""What metrics may use: scorers, control words and real images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from srpo_core.config import ControlWords, RewardSettings, ScorerSettings, rewards_by_name
from srpo_core.errors import ConfigError
from srpo_core.protocols import Judge, RewardModel, TwoTowers
from srpo_core.scorers.registry import load_reward, load_rewards, load_scorer


@dataclass(frozen=True)
class MetricContext:
    """What metrics may use. A scorer is loaded when the first metric needs it.

    scorer_settings: further scorers by name; real: returns the images that the metric kid compares with, in
    batches (R, 3, H, W) in [0, 1]; training: returns images of the training data in the same way; loaded: the reward on the
    device, if it is in memory already.
    """

    reward_settings: Sequence[RewardSettings]
    judge_settings: ScorerSettings
    control_words: ControlWords
    scorer_settings: Mapping[str, ScorerSettings] = field(default_factory=dict)
    real: Callable[[], Iterable[Tensor]] | None = None
    training: Callable[[], Iterable[Tensor]] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loaded: RewardModel | None = None

    @property
    def all_settings(self) -> dict[str, ScorerSettings]:
        """The settings of all scorers, by name."""
        rewards = rewards_by_name(self.reward_settings)
        return {**rewards, "judge": self.judge_settings, **self.scorer_settings}

    @cached_property
    def reward(self) -> RewardModel:
        """The reward that was trained against: the weighted sum of the run's rewards."""
        return self.loaded or load_rewards(self.reward_settings).to(self.device)

    @cached_property
    def judge(self) -> Any:
        """The judge, which is never trained against: a `Judge`, or a `RewardModel` if images have no known styles."""
        return load_scorer(self.judge_settings).to(self.device)

    @cached_property
    def scorers(self) -> Mapping[str, RewardModel]:
        """The further scorers."""
        return {name: load_reward(one).to(self.device) for name, one in self.scorer_settings.items()}

    @cached_property
    @torch.no_grad()
    def real_features(self) -> Tensor:
        """The judge's features of the real images; only of those in the wanted styles, if it classifies styles."""
        assert self.real is not None, "checked before images are generated"
        kept = []
        for batch in self.real():
            images = batch.to(self.device)
            features = kernel_features(images, self)
            if hasattr(self.judge, "styles"):
                wanted = self.judge.style_probabilities(images)[:, wanted_styles(self)].sum(1)
                features = features[wanted > 1 / 2]
            kept.append(features)
        return torch.cat(kept).cpu()

    @property
    def classifier(self) -> Judge:
        """The judge as a classifier of styles and subjects; `check_metrics` requires that it is one."""
        return cast(Judge, self.judge)

    @property
    def text_judge(self) -> RewardModel:
        """The judge as a scorer of images against texts; `check_metrics` requires that it is one."""
        return cast(RewardModel, self.judge)


def judge_features(images: Tensor, context: MetricContext) -> Tensor:
    """Compute the judge's features of the images, (K, D)."""
    judge = context.judge
    if not hasattr(judge, "features") and not isinstance(judge, TwoTowers):
        raise ConfigError(
            f"judge: {context.judge_settings.scorer!r} returns no features of images, which this metric compares: drop "
            "the metrics kid and diversity, or set another judge"
        )
    features: Tensor = judge.features(images) if hasattr(judge, "features") else judge.encode_images(images)
    return features


def kernel_features(images: Tensor, context: MetricContext) -> Tensor:
    """Compute the judge's features at the scale that the kernel distance expects: coordinates of order 1, (K, D).

    A judge that reads texts returns vectors of length 1, which the kernel could hardly distinguish. At length
    sqrt(D) the kernel's <x, y> / D is their cosine.
    """
    features = judge_features(images, context)
    return features if hasattr(context.judge, "features") else features * features.shape[-1] ** 0.5


def wanted_styles(context: MetricContext) -> list[int]:
    """Find the judge's columns of the wanted styles, each once. A wanted word that is no style is a `ConfigError`."""
    styles = list(context.classifier.styles)
    unknown = [word for word in context.control_words.wanted if word not in styles]
    if unknown:
        raise ConfigError(
            f"control_words.wanted: {', '.join(unknown)} is not a style of the judge: known are {', '.join(styles)}"
        )
    return sorted({styles.index(word) for word in context.control_words.wanted})
