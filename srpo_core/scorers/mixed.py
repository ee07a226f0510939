"""The weighted sum of several rewards, which is a reward itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from srpo_core.protocols import RewardModel


@dataclass(frozen=True)
class MixedReward:
    """A `RewardMix`: the sum of `rewards`, each times its weight. Both are by name, in one order."""

    rewards: Mapping[str, RewardModel]
    weights: Mapping[str, float]

    def to(self, device: torch.device) -> Self:
        """Move all rewards to a device, in place."""
        for one in self.rewards.values():
            one.to(device)
        return self

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the weighted sum of the scores, (len(texts),); see `RewardModel.score`."""
        return self.total(self.score_each(images, texts))

    def total(self, each: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the scores of each reward; see `RewardMix.total`."""
        return torch.stack([self.weights[name] * scores for name, scores in each.items()]).sum(0)

    def score_each(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the score of each reward alone, before its weight; see `RewardMix.score_each`."""
        return {name: one.score(images, texts) for name, one in self.rewards.items()}

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the weights of all rewards, which are modules."""
        modules: list[Any] = list(self.rewards.values())
        return chain.from_iterable(one.parameters() for one in modules)
