"""The limits of early stop as hypotheses: what must not be exceeded, relative to the base's images of the same prompts.

Figures are (N, K): K images, or for a metric over the images of a prompt their mean (K = 1), of each of N prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from srpo_core.config import AlarmLimit, EarlyStop
from srpo_core.errors import ConfigError
from srpo_core.training.betting import Floats, log_growth

BROKEN: Final = "broken"  # the limit `max_broken`, and the name of its figure: 1 for a broken image, else 0
TOO_LOW: Final = "too low"
TOO_HIGH: Final = "too high"


@dataclass(frozen=True)
class Hypothesis:
    """One null hypothesis: on average over the prompts, the expected figure is not beyond its bound.

    limit: name of the limit, which has one or two hypotheses; sign: 1 if the figure must not be above the bound, -1
    if not below; bound: (N, 1); far: (N, 1), the figures furthest on the allowed side that count: others count as
    these.
    """

    limit: str
    metric: str
    sign: int
    bound: Floats
    far: Floats

    @property
    def name(self) -> str:
        """The limit, with the direction in which it would be left."""
        if self.limit == BROKEN:
            return BROKEN
        return f"{self.limit} {TOO_HIGH if self.sign > 0 else TOO_LOW}"

    @property
    def lowest(self) -> float:
        """The lowest possible excess."""
        return float((self.sign * (self.far - self.bound)).min())

    def excess(self, figures: Floats) -> Floats:
        """Compute by how much figures (N, K) are beyond the bound, (N, K); what is within it is negative."""
        found: Floats = self.sign * (figures - self.bound)
        return np.maximum(found, self.sign * (self.far - self.bound))

    def growth(self, figures: Floats) -> Floats:
        """Compute the logarithms of the factors by which these figures multiply the wealth; see `log_growth`."""
        return log_growth(self.excess(figures).ravel(), self.lowest)


def hypotheses(
    rule: EarlyStop, pool: Mapping[str, Floats], ranges: Mapping[str, tuple[float, float]]
) -> list[Hypothesis]:
    """List the hypotheses of the limits, in the order of the settings.

    pool: figures (N, K) of the base's images, by metric; ranges: lowest and highest possible figure, by metric.

    Raises:
        ConfigError: the base's own images are beyond a limit, so every run would end, or no figure can be.
    """
    share = rule.max_broken + float(pool[BROKEN].mean())
    column = np.ones((len(pool[BROKEN]), 1))
    found = [Hypothesis(BROKEN, BROKEN, 1, share * column, 0.0 * column)]
    for name, limit in rule.limits.items():
        found += _of_limit(name, limit, pool[limit.metric], ranges[limit.metric])
    for one in found:
        _require_testable(one, pool[one.metric])
    return found


def weights(names: Sequence[str]) -> Floats:
    """Return the share of alpha of each hypothesis: equal for all limits, halved where a limit has two.

    names: the limit of each hypothesis.
    """
    return np.array([1 / (len(set(names)) * names.count(name)) for name in names])


def _of_limit(name: str, limit: AlarmLimit, pool: Floats, bounds: tuple[float, float]) -> list[Hypothesis]:
    base = pool.mean(1, keepdims=True)
    signs = {"at_least": [-1], "at_most": [1], "within": [1, -1]}[limit.side]
    return [_one_sided(name, limit, sign, base, bounds) for sign in signs]


def _one_sided(
    name: str, limit: AlarmLimit, sign: int, base: Floats, bounds: tuple[float, float]
) -> Hypothesis:
    if limit.compare == "ratio":
        bound = limit.margin * base
        far = np.full_like(base, bounds[0] if sign > 0 else bounds[1])
        counted = far if limit.cap is None else np.full_like(base, limit.cap * base.mean())
    else:
        margin = sign * limit.margin if limit.side == "within" else limit.margin
        bound = base + margin
        far = np.full_like(base, bounds[0] if sign > 0 else bounds[1])
        counted = far if limit.cap is None else base - sign * limit.cap
    nearest = np.maximum if sign > 0 else np.minimum
    return Hypothesis(name, limit.metric, sign, bound, nearest(far, counted))


def _require_testable(one: Hypothesis, pool: Floats) -> None:
    if not -np.inf < one.lowest < 0:
        raise ConfigError(
            f"train.early_stop.limits.{one.limit}: no figure of {one.metric} can be within the limit, or its range has "
            "no end: set cap, and margin and cap on different sides of the base's figure"
        )
    if (found := float(one.excess(pool).mean())) > 0:
        raise ConfigError(
            f"train.early_stop.limits.{one.limit}: the base's own images are {found:.3g} beyond the limit on "
            f"{one.metric}, so every run would end: set a wider margin, or a larger cap"
        )
