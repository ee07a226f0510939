"""Group-sequential stages: how much of the error rate each stage of an evaluation may use.

Whoever looks at the same figures several times and stops at the first success errs more often than once. So the error rate
is divided among the stages by a spending function (Lan and DeMets 1983), here the one that imitates O'Brien and Fleming
(1979): hardly anything at the first stages, nearly all at the last. The chance of an error at any stage is at most that of
a single look. Three kinds of intervals need three ways to divide it:

- Bootstrapped means: the levels at which a Brownian motion crosses its boundary with the chance that is spent, by the
  numerical integration of Armitage, McPherson and Rowe (1969). Means of growing samples are such a motion for large samples,
  which the bootstrap assumes, too.
- Exact intervals of bounded figures (`bounded.py`): each stage gets what it spends, and no more (union bound). This is valid
  for every distribution.
- Exact shares (`shares.py`): the same, but a stage whose best outcome, no bad image at all, proves nothing spends nothing, and
  one that can prove something spends only the chance of doing so. What is left goes to the next stages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import numpy as np

from srpo_core.gates.bootstrap import Floats

NORMAL: Final = NormalDist()
GRID: Final = 801  # points of the integration; a level changes by less than 1e-5 with twice as many
FARTHEST: Final = 8.0  # standard deviations below which the density is left out
HIGHEST: Final = 12.0  # a boundary in standard deviations that is never reached


@dataclass(frozen=True)
class Stage:
    """A stage of an evaluation.

    number: from 0; num_prompts: of each stage, ascending, the last with all prompts.
    """

    number: int
    num_prompts: tuple[int, ...]

    @property
    def is_last(self) -> bool:
        """Whether all prompts are evaluated."""
        return self.number == len(self.num_prompts) - 1

    @property
    def size(self) -> int:
        """Number of prompts until this stage."""
        return self.num_prompts[self.number]

    def confidence(self, whole: float) -> float:
        """Return the confidence of a two-sided bootstrap interval at this stage, if it is `whole` in a single look."""
        return 1 - 2 * nominal_levels((1 - whole) / 2, self.shares)[self.number]

    def exact_confidence(self, whole: float) -> float:
        """Return the confidence of a two-sided exact interval at this stage, if it is `whole` in a single look."""
        return 1 - 2 * spent_at((1 - whole) / 2, self.shares)[self.number]

    def share_confidence(self, whole: float, margin: float, units_per_prompt: int) -> float:
        """Return the confidence of a one-sided exact interval of a share at this stage, if it is `whole` in a single look.

        margin: the share that is to be excluded; units_per_prompt: images of a prompt that count, or 1 if prompts count.
        """
        sizes = [units_per_prompt * size for size in self.num_prompts]
        return 1 - share_levels(1 - whole, margin, sizes, self.shares)[self.number]

    @property
    def shares(self) -> list[float]:
        """Shares of the prompts until each stage."""
        return [size / self.num_prompts[-1] for size in self.num_prompts]


def stage_sizes(num_prompts: int, stages: Sequence[float]) -> tuple[int, ...]:
    """Return the number of prompts until each stage, whose shares of all prompts are `stages`; equal ones count once."""
    return tuple(dict.fromkeys(math.ceil(round(share * num_prompts, 9)) for share in stages))


def spent(alpha: float, share: float) -> float:
    """Return the one-sided error rate that is spent until a share in (0, 1] of the prompts is evaluated.

    The function of Lan and DeMets that imitates O'Brien and Fleming.
    """
    quantile = -NORMAL.inv_cdf(alpha / 2)
    return 2 * NORMAL.cdf(-quantile / math.sqrt(share))


def spent_at(alpha: float, shares: Sequence[float]) -> list[float]:
    """Return the one-sided error rate that each stage spends; together they spend `alpha`."""
    until = [spent(alpha, share) for share in shares]
    return [now - before for before, now in pairwise([0.0, *until])]


def nominal_levels(alpha: float, shares: Sequence[float]) -> list[float]:
    """Return the one-sided levels at which each stage tests so that all of them together err with the chance `alpha`.

    shares: of the prompts that are evaluated until each stage, ascending, the last is 1. A single stage has `alpha` itself.
    """
    if len(shares) == 1:
        return [alpha]
    from scipy.optimize import brentq

    levels: list[float] = []
    motion, before = _Motion(np.zeros(1), np.ones(1)), 0.0
    for share, spend in zip(shares, spent_at(alpha, shares), strict=True):
        missing = partial(motion.missing, share=share, root=math.sqrt(share - before), spend=spend)
        score = brentq(missing, 0.0, HIGHEST, xtol=1e-10)
        levels.append(NORMAL.cdf(-score))
        motion, before = motion.continued(score, share, math.sqrt(share - before)), share
    return levels


@dataclass(frozen=True)
class _Motion:
    """A Brownian motion that has not crossed a boundary: its places (G,) and their density; one place is a point mass."""

    places: Floats
    density: Floats

    def missing(self, score: float, *, share: float, root: float, spend: float) -> float:
        """Return the chance to be beyond `score` standard deviations at time `share`, minus `spend`.

        root: standard deviation of the step to that time.
        """
        from scipy.special import ndtr

        return self._mean(ndtr((self.places - score * math.sqrt(share)) / root)) - spend

    def continued(self, score: float, share: float, root: float) -> "_Motion":
        """Return the motion at time `share` if it is not beyond `score` standard deviations."""
        places = np.linspace(-FARTHEST * math.sqrt(share), score * math.sqrt(share), GRID)
        steps = np.exp(-(((places[:, None] - self.places) / root) ** 2) / 2) / (root * math.sqrt(2 * math.pi))
        return _Motion(places, np.array([self._mean(row) for row in steps]))

    def _mean(self, values: Floats) -> float:
        if len(self.places) == 1:
            return float(values[0])
        return float(np.trapezoid(values * self.density, self.places))


def share_levels(alpha: float, margin: float, sizes: Sequence[int], shares: Sequence[float]) -> list[float]:
    """Return the one-sided levels of exact tests that a share is below `margin`, from samples of the given sizes.

    A stage spends the chance to prove it that a share of exactly the margin has, which is 0 if even a sample without a single
    hit proves nothing; the rest of what the spending function allows goes to the next stages.
    """
    from scipy.special import bdtr

    levels, used = [], 0.0
    for size, share in zip(sizes, shares, strict=True):
        level = spent(alpha, share) - used
        levels.append(level)
        chances = bdtr(np.arange(size + 1), size, margin)
        used += float(chances[chances <= level].max(initial=0.0))
    return levels
