"""How far data moved: shares of styles, and the agreement of a reward with people, with exact bounds.

The bounds hold at any number of prompts, so a small file cannot seem to have moved by chance more often than the
confidence allows. Prompts that both data sets share make the two more alike than the bounds assume, which only makes a
finding rarer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from srpo_core.data.intervals import independent_pairs

_TWO_SIDED: Final = 2


@dataclass(frozen=True)
class Moved:
    """A figure that moved between two data sets.

    value: by how much; low, high: within which bounds it is, with the confidence that was asked for.
    """

    value: float
    low: float
    high: float

    def beyond(self, limit: float) -> bool:
        """Whether it is shown that the figure moved by more than `limit`, up or down."""
        return self.low > limit or self.high < -limit


@dataclass(frozen=True)
class Agreement:
    """How often a reward prefers the image that people preferred, for each pair, and the prompt of each pair."""

    agreed: Sequence[bool]
    prompts: Sequence[str]

    @property
    def share(self) -> float:
        """The share of the pairs in which the reward agrees."""
        return sum(self.agreed) / len(self.agreed)

    def bounds(self, tail: float) -> tuple[float, float]:
        """Return the bounds of the share, each wrong with a probability of at most `tail`; pairs share prompts."""
        return exact_bounds(self.share, independent_pairs(self.agreed, self.prompts), tail)


def style_shift(before: Mapping[str, int], after: Mapping[str, int], confidence: float) -> Moved:
    """Compute the total variation distance of two distributions of prompts over styles, with a lower bound.

    before, after: number of different prompts by style, each of at least one prompt. The distance is the largest
    difference of the shares that any set of styles has; 0: the shares are equal, 1: no style is in both. As the styles of
    this set are chosen by the data, the bound holds for all sets of styles at once (Bonferroni), by the exact bounds of
    Clopper and Pearson 1934. The upper bound is 1.
    """
    styles = sorted(before.keys() | after.keys())
    total_before, total_after = sum(before.values()), sum(after.values())
    more = [
        style for style in styles if after.get(style, 0) * total_before > before.get(style, 0) * total_after
    ]
    if not more:
        return Moved(0.0, 0.0, 1.0)
    old = sum(before.get(style, 0) for style in more) / total_before
    new = sum(after.get(style, 0) for style in more) / total_after
    # of the two shares and of the 2 ** n - 2 sets that are neither none nor all; 0 for thousands of styles: no bound then
    tail = math.ldexp((1 - confidence) / 2, -len(styles)) / (1 - 2.0 ** (1 - len(styles)))
    low = exact_bounds(new, total_after, tail)[0] - exact_bounds(old, total_before, tail)[1]
    return Moved(new - old, max(0.0, low), 1.0)


def agreement_shift(before: Agreement, after: Agreement, confidence: float) -> Moved:
    """Compute the difference of two agreements, new minus old, with exact bounds.

    The bounds are those of Clopper and Pearson with the effective number of pairs, as Korn and Graubard 1998 propose.
    """
    tail = (1 - confidence) / _TWO_SIDED / 2  # of the two shares
    old, new = before.bounds(tail), after.bounds(tail)
    return Moved(after.share - before.share, new[0] - old[1], new[1] - old[0])


def exact_bounds(share: float, trials: float, tail: float) -> tuple[float, float]:
    """Compute the bounds of a share of successes, each wrong with a probability of at most `tail`.

    trials: their number, or an effective number, which need not be whole. Clopper and Pearson 1934.
    """
    from scipy.special import betaincinv

    hits = share * trials
    low = 0.0 if hits <= 0 else float(betaincinv(hits, trials - hits + 1, tail))
    # not 1 - tail, which is rounded to 1 for many styles
    high = 1.0 if hits >= trials else 1.0 - float(betaincinv(trials - hits, hits + 1, tail))
    return low, high
