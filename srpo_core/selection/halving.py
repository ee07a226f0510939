"""Successive halving: checkpoints that are clearly worse on the first prompts get no images of the others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.config import HalvingSettings, SelectSettings

Floats = NDArray[np.float64]

BASE_STEP: Final = 0
ROUNDING: Final = 1e-9  # a mean that meets its margin exactly must not fail by its last bit
MIN_PROMPTS: Final = 2  # one prompt has no spread

Figures = Mapping[str, Sequence[float]]  # by metric, one of every image, prompt by prompt
Means = Mapping[str, float]


@dataclass(frozen=True)
class Round:
    """A round: how many prompts each checkpoint had images of, which checkpoints took part, and which were dropped."""

    num_prompts: int
    compared: list[int]
    dropped: list[int]


@dataclass(frozen=True)
class Compared:
    """The figures of every step, 0 being the base, and the rounds that led to them.

    A checkpoint that was dropped has those of the prompts until then.
    """

    figures: Mapping[int, Figures]
    rounds: list[Round]

    @property
    def finalists(self) -> list[int]:
        """The checkpoints with images of all prompts."""
        last = self.rounds[-1]
        return [step for step in last.compared if step not in last.dropped]


def round_sizes(num_prompts: int, halving: HalvingSettings | None) -> list[int]:
    """Return the number of prompts after each round, ascending; the last is all of them.

    Each round doubles the prompts, because it may halve the checkpoints. Rounds with fewer than two prompts are left out.
    """
    rounds = 1 if halving is None else halving.rounds
    sizes = dict.fromkeys(math.ceil(num_prompts / 2 ** (rounds - 1 - number)) for number in range(rounds))
    return [size for size in sizes if size >= MIN_PROMPTS or size == num_prompts]


def compare_in_rounds(
    steps: Sequence[int],
    sizes: Sequence[int],
    measured: Callable[[int, int], Figures],
    select: SelectSettings,
) -> Compared:
    """Compare checkpoints on growing numbers of prompts, and drop after each round those that `clearly_worse` names.

    steps: of the checkpoints; sizes: see `round_sizes`; measured: (step, number of the round) -> the figures of the
    prompts that the round adds.
    """
    figures: dict[int, dict[str, list[float]]] = {}
    left, rounds = sorted(steps), []
    for number, size in enumerate(sizes):
        for step in (BASE_STEP, *left):
            own = figures.setdefault(step, {})
            for name, values in measured(step, number).items():
                own.setdefault(name, []).extend(values)
        is_last = number == len(sizes) - 1
        dropped = (
            [] if is_last else clearly_worse({step: figures[step] for step in (BASE_STEP, *left)}, select)
        )
        rounds.append(Round(size, left, dropped))
        left = [step for step in left if step not in dropped]
    return Compared(figures, rounds)


def image_counts(num_checkpoints: int, select: SelectSettings) -> tuple[int, int]:
    """Return the least and the greatest number of images that select generates of all checkpoints, without the base's.

    The least if each round drops the whole worse half, the greatest if none drops a checkpoint.
    """
    sizes = [0, *round_sizes(select.num_prompts, select.halving)]
    least, left = 0, num_checkpoints
    for start, stop in pairwise(sizes):
        least += left * (stop - start) * select.seeds_per_prompt
        left = math.ceil(left / 2)
    return least, num_checkpoints * select.num_prompts * select.seeds_per_prompt


def clearly_worse(figures: Mapping[int, Figures], select: SelectSettings) -> list[int]:
    """Return the checkpoints of the worse half that are clearly worse than the best one, in ascending order.

    Clearly worse: `select.maximize` is more than `select.halving.distance` standard errors of the paired difference below
    that of the best checkpoint within the margins, or a metric of `select.keep` is so far below its margin. If no
    checkpoint is within the margins, none is dropped, because more prompts may show that one is.
    """
    assert select.halving is not None, "without halving there is one round, after which none is dropped"
    steps = sorted(step for step in figures if step != BASE_STEP)
    means = {step: means_of(own) for step, own in figures.items()}
    ranked = sorted(steps, key=lambda step: rank(means[step], means[BASE_STEP], select), reverse=True)
    best = ranked[0]
    if least_slack(means[best], means[BASE_STEP], select.keep) < -ROUNDING:
        return []
    distance, seeds = select.halving.distance, select.seeds_per_prompt
    base = {name: _by_prompt(values, seeds) for name, values in figures[BASE_STEP].items()}
    dropped = []
    for step in ranked[math.ceil(len(ranked) / 2) :]:
        own = {name: _by_prompt(values, seeds) for name, values in figures[step].items()}
        leader = _by_prompt(figures[best][select.maximize], seeds)
        lost = [own[name] - base[name] - margin for name, margin in select.keep.items()]
        if any(_errors_below_0(one) > distance for one in (own[select.maximize] - leader, *lost)):
            dropped.append(step)
    return sorted(dropped)


def rank(means: Means, base: Means, select: SelectSettings) -> tuple[bool, float, float]:
    """Return what orders checkpoints: within the margins first, then by `select.maximize`; outside by the worst breach."""
    slack = least_slack(means, base, select.keep)
    if slack >= -ROUNDING:
        return True, means[select.maximize], 0.0
    return False, slack, means[select.maximize]


def least_slack(means: Means, base: Means, keep: Mapping[str, float]) -> float:
    """Return how far the worst metric of `keep` is above its margin; negative if it is below, 0 without margins."""
    return min((means[name] - base[name] - margin for name, margin in keep.items()), default=0.0)


def means_of(figures: Figures) -> dict[str, float]:
    """Average each metric over the images."""
    return {name: sum(values) / len(values) for name, values in figures.items()}


def _by_prompt(values: Sequence[float], seeds: int) -> Floats:
    means: Floats = np.asarray(values, dtype=np.float64).reshape(-1, seeds).mean(1)
    return means


def _errors_below_0(differences: Floats) -> float:
    """Return by how many standard errors the mean of paired differences (N,) is below 0; infinity without any spread."""
    mean = float(differences.mean())
    if mean >= -ROUNDING:
        return 0.0
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return math.inf if error == 0 else -mean / error
