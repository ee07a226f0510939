"""Intervals of a share of pairs that share prompts."""

from collections.abc import Sequence
from math import sqrt
from typing import Final

Z_95: Final = 1.959964  # quantile of the normal distribution for a two-sided 95 % interval


def share_interval(agreed: Sequence[bool], prompts: Sequence[str]) -> tuple[float, float]:
    """Compute the 95 % interval of the share of pairs that agree, with the pairs of one prompt as one group."""
    return wilson_interval(sum(agreed) / len(agreed), independent_pairs(agreed, prompts))


def independent_pairs(agreed: Sequence[bool], prompts: Sequence[str]) -> float:
    """Compute the effective sample size of pairs that share prompts and images.

    It is the number of pairs divided by the design effect of their grouping by prompt, at most the number of pairs. If
    all pairs agree or none does, there is no variance to estimate it from, and it is the number of prompts. Kish 1965,
    section 5.4; with Wilson's interval: Korn and Graubard 1998.
    """
    groups: dict[str, list[bool]] = {}
    for prompt, one in zip(prompts, agreed, strict=True):
        groups.setdefault(prompt, []).append(one)
    share, count = sum(agreed) / len(agreed), len(groups)
    beyond = sum((sum(own) - share * len(own)) ** 2 for own in groups.values())
    if count == 1 or share in {0, 1}:
        return float(count)
    if beyond == 0:
        return float(len(agreed))
    variance = beyond / len(agreed) ** 2 * count / (count - 1)
    return min(float(len(agreed)), share * (1 - share) / variance)


def wilson_interval(share: float, trials: float, z: float = Z_95) -> tuple[float, float]:
    """Compute the interval in [0, 1] of a share of successes in independent trials. Wilson 1927."""
    denominator = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / denominator
    half = z * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)
