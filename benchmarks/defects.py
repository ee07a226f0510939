"""Defects of known size, added to the figures of an honest model."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from srpo_core.config import GateSettings
from srpo_core.gates.pairs import Floats, Pairs

SUBJECTS: Final = ("judge_top1", "judge_top5")
GAINS: Final = ("relative_reward", "judge_wanted")

Figures = dict[str, Floats]
Lost = Callable[[Pairs, float, Generator], NDArray[np.bool_]]
Spoil = Callable[[Pairs, GateSettings, float, Generator], Figures | None]


def lost_prompts(pairs: Pairs, share: float, draw: Generator) -> NDArray[np.bool_]:
    """Mark all images of a share of the prompts."""
    return (draw.random(len(pairs.prompts)) < share)[pairs.prompt_index]


def lost_images(pairs: Pairs, share: float, draw: Generator) -> NDArray[np.bool_]:
    """Mark a share of the images."""
    return draw.random(len(pairs.seeds)) < share


def _without_subject(pairs: Pairs, bad: NDArray[np.bool_]) -> Figures | None:
    if not set(SUBJECTS) <= pairs.aligned.keys():
        return None
    return {name: np.where(bad, 0.0, pairs.aligned[name]) for name in SUBJECTS}


def _broken(pairs: Pairs, gate: GateSettings, bad: NDArray[np.bool_]) -> Figures | None:
    names = {rule.metric for rule in gate.rules.values() if rule.compare.startswith("share")}
    return {name: np.where(bad, 1.0, pairs.aligned[name]) for name in names} or None


def _less_diverse(pairs: Pairs, gate: GateSettings, share: float, draw: Generator) -> Figures:
    del gate, draw
    return {"diversity": (1 - share) * pairs.aligned["diversity"]}


def _less_gain(pairs: Pairs, gate: GateSettings, share: float, draw: Generator) -> Figures:
    del gate, draw
    return {name: (1 - share) * pairs.aligned[name] + share * pairs.base[name] for name in GAINS}


DEFECTS: Final[Mapping[str, Spoil]] = {
    "prompts without their subject": lambda pairs, gate, share, draw: _without_subject(
        pairs, lost_prompts(pairs, share, draw)
    ),
    "images without their subject": lambda pairs, gate, share, draw: _without_subject(
        pairs, lost_images(pairs, share, draw)
    ),
    "broken prompts": lambda pairs, gate, share, draw: _broken(pairs, gate, lost_prompts(pairs, share, draw)),
    "broken images": lambda pairs, gate, share, draw: _broken(pairs, gate, lost_images(pairs, share, draw)),
    "diversity lost": _less_diverse,
    "gain missing": _less_gain,
}
