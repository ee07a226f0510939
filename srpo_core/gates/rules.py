"""One rule of the gate: what it measures, and how its outcome reads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from srpo_core.config import GateRule, GateSettings
from srpo_core.errors import ConfigError
from srpo_core.gates.bootstrap import mean_interval
from srpo_core.gates.pairs import Floats, Pairs


@dataclass(frozen=True)
class Measurement:
    """A figure with its interval; NaN where it could not be measured.

    unusable: pairs whose figure is not a finite number; first_unusable: the first of them in words.
    """

    value: float
    low: float
    high: float
    unusable: int = 0
    first_unusable: str = ""


def _against_base(pairs: Pairs, metric: str) -> Floats:
    return pairs.aligned[metric] - pairs.base[metric]


def _absolute(pairs: Pairs, metric: str) -> Floats:
    return pairs.aligned[metric]


COMPARISONS: Final[Mapping[str, Callable[[Pairs, str], Floats]]] = MappingProxyType(
    {"base": _against_base, "absolute": _absolute}
)
BOUNDS: Final[Mapping[str, Callable[[Measurement], float]]] = MappingProxyType(
    {
        "lower": lambda measured: measured.low,
        "upper": lambda measured: measured.high,
        "mean": lambda measured: measured.value,
    }
)
BOUND_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {"lower": "the lower end of the interval", "upper": "the upper end of the interval", "mean": "the mean"}
)


def measure(rule: GateRule, pairs: Pairs, *, seed: int, gate: GateSettings) -> Measurement:
    """Mean over prompts of the rule's figure, with its bootstrap interval.

    Every rule resamples the same prompts, so that adding a rule changes no other rule's interval.

    Raises:
        ConfigError: the metric is not a column of the evaluation.
    """
    if rule.metric not in pairs.aligned:
        raise ConfigError(
            f"gate: metric {rule.metric!r} is not a column of the evaluation: known are "
            f"{', '.join(pairs.metrics)}; add it to evaluate.metrics in params.yaml or change the rule"
        )
    figures = COMPARISONS[rule.against](pairs, rule.metric)
    unusable = np.flatnonzero(~np.isfinite(figures))
    if len(unusable):
        first = unusable[0]
        where = f"prompt {pairs.prompts[pairs.prompt_index[first]]!r}, seed {pairs.seeds[first]}"
        return Measurement(math.nan, math.nan, math.nan, len(unusable), where)
    by_prompt = pairs.by_prompt(figures)
    low, high = mean_interval(
        by_prompt,
        confidence=gate.confidence,
        resamples=gate.resamples,
        generator=np.random.default_rng(seed),
    )
    return Measurement(float(by_prompt.mean()), low, high)


def judged(rule: GateRule, measured: Measurement) -> float:
    """The end of the interval, or the mean, that the rule holds to its threshold."""
    return BOUNDS[rule.bound](measured)


def sentence(rule: GateRule, measured: Measurement, *, passed: bool, confidence: float) -> str:
    """The outcome of a rule in one sentence for a newcomer."""
    if measured.unusable:
        return (
            f"{rule.metric} is not a number in {measured.unusable} of the pairs of pictures (first: "
            f"{measured.first_unusable}), so it is not shown that {rule.meaning}"
        )
    if math.isnan(judged(rule, measured)):
        return (
            f"{rule.metric} was measured on one prompt, which gives no interval, so it is not shown that "
            f"{rule.meaning}; raise evaluate.num_prompts"
        )
    figure = _signed(rule, measured.value)
    what = (
        f"{rule.metric} is {figure}" if rule.against == "absolute" else f"{rule.metric} changed by {figure}"
    )
    ends = f"{_signed(rule, measured.low)} to {_signed(rule, measured.high)}"
    spread = "" if math.isnan(measured.low) else f" ({confidence:.0%} interval {ends})"
    demand = f"{what}{spread}; {BOUND_WORDS[rule.bound]} had to be {_demand(rule)} and is"
    return f"{demand}: {rule.meaning}" if passed else f"{demand} not, so it is not shown that {rule.meaning}"


def threshold(rule: GateRule) -> float:
    """The rule's one threshold, from below or from above."""
    limits = [limit for limit in (rule.at_least, rule.at_most) if limit is not None]
    return limits[0]


def _demand(rule: GateRule) -> str:
    side = "at most" if rule.at_least is None else "at least"
    return f"{side} {_signed(rule, threshold(rule))}"


def _signed(rule: GateRule, figure: float) -> str:
    return f"{figure:.3f}" if rule.against == "absolute" else f"{figure:+.3f}"
