"""Scorers: models that score images, as rewards (differentiable) or as judges.

To add one: a file here that defines a `ScorerEntry`, and a line in `SCORERS` (registry.py).
"""

from srpo_core.scorers.entry import ScorerEntry, ScorerFiles
from srpo_core.scorers.registry import (
    SCORERS,
    build_reward,
    build_rewards,
    load_reward,
    load_rewards,
    load_scorer,
)

__all__ = [
    "SCORERS",
    "ScorerEntry",
    "ScorerFiles",
    "build_reward",
    "build_rewards",
    "load_reward",
    "load_rewards",
    "load_scorer",
]
