"""How many prompts and raters a task needs before anyone rates: for a stated effect, power and confidence.

Every rater sees every item, so raters and prompts are crossed random effects: with R raters, P prompts and one image per
model and prompt, the variance of the mean is v·(a/R + b/P + (1-a-b)/(R·P)), where v is the variance of one answer, a the share
of it that differs between raters and b the share that differs between prompts. More prompts cannot replace raters: a/R remains.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from srpo_core.errors import ConfigError
from srpo_core.rating.records import PAIRED, answers_of, dimensions_of

LEAST_PROMPTS: Final = 6  # an interval over fewer is not reliable
MOST_PROMPTS: Final = 100_000
SAMPLES: Final = 4_000  # of the variance, for the expected power
LEAST_RATERS: Final = 2
MOST_RATERS: Final = 1_000
LEAST_CHANCE: Final = 0.5  # of a power or a confidence
REPEATED_SHARE: Final = 0.1  # of the items that each rater sees a second time
LEAST_REPEATS: Final = 4
CAREFUL: Final = 0.9  # share of the obvious items that a careful rater answers rightly
WRONGLY_SUSPECTED: Final = 0.05  # chance that a careful rater fails the checks
LAZY_FOUND: Final = 0.9  # chance that a rater who clicks at random fails them


@dataclass(frozen=True)
class Assumptions:
    """What a plan assumes about answers.

    ties: share of ties of a pair. base_rate: share of images of the base that are rated excellent, of levels (the paper's base
    has 8.2 % for realism). between_raters, between_prompts: shares of the variance of an answer.
    """

    ties: float = 0.2
    base_rate: float = 0.1
    between_raters: float = 0.03
    between_prompts: float = 0.15


@dataclass(frozen=True)
class Plan:
    """The planned part of a task.

    prompts: prompts that each rater sees, each with all pairs of the models, or with one image of each. repeats, checks: further
    items. models: number of models. expected_power: of this plan, at least `power`. design_effect: how many times larger the variance is than that of
    as many answers that are independent of each other.
    """

    protocol: str
    effect: float
    power: float
    confidence: float
    raters: int
    prompts: int
    repeats: int
    checks: int
    expected_power: float
    design_effect: float
    models: int = 2

    @property
    def plain_items(self) -> int:
        """Number of items of a rater without repeats and checks."""
        return self.prompts * _items_of_prompt(self.protocol, self.models)

    @property
    def items(self) -> int:
        """Number of items that each rater sees."""
        return self.plain_items + self.repeats + self.checks

    @property
    def answers(self) -> int:
        """Number of answers that each rater gives."""
        return self.items * len(dimensions_of(self.protocol))


def plan_items(
    protocol: str,
    effect: float,
    *,
    power: float = 0.8,
    raters: int = 3,
    confidence: float = 0.95,
    models: int = 2,
    assumed: Assumptions | None = None,
) -> Plan:
    """Plan the least number of prompts with which `raters` raters show an effect with a chance of at least `power`.

    models: all of them are paired with each other, or graded; the plan is for the effect between two of them. effect: of a pair how far the win rate is above one half, with levels how far the share of excellent images is above the
    base's.

    Raises:
        ConfigError: a value is out of range, or no number of prompts is enough for so few raters; it names a number that is.
    """
    assumed = assumed or Assumptions()
    _require_range(protocol, effect, power, raters, confidence, assumed)

    def reached(number: int, prompts: int) -> float:
        return expected_power(protocol, effect, number, prompts, confidence, assumed)

    if reached(raters, MOST_PROMPTS) < power:
        needed = _least(raters, MOST_RATERS, lambda number: reached(number, MOST_PROMPTS) >= power)
        advice = f"take {needed} raters or more, or" if needed else "take"
        raise ConfigError(
            f"{raters} raters cannot show an effect of {effect:g} with power {power:g}, however many prompts they rate: "
            f"{advice} a larger effect or a smaller power"
        )
    prompts = _least(LEAST_PROMPTS, MOST_PROMPTS, lambda number: reached(raters, number) >= power)
    assert prompts is not None
    shown = prompts * _items_of_prompt(protocol, models)
    single = _variance(protocol, effect, assumed) / (raters * prompts)
    return Plan(
        protocol=protocol,
        effect=effect,
        power=power,
        confidence=confidence,
        raters=raters,
        prompts=prompts,
        repeats=min(shown, max(LEAST_REPEATS, math.ceil(REPEATED_SHARE * shown))),
        checks=num_checks(protocol),
        expected_power=round(reached(raters, prompts), 4),
        design_effect=round(sum(_parts(protocol, effect, raters, prompts, assumed)) / single, 2),
        models=models,
    )


def expected_power(
    protocol: str, effect: float, raters: int, prompts: int, confidence: float, assumed: Assumptions
) -> float:
    """Return the chance that the interval of `clustered` excludes "no effect", for answers with normal random effects.

    The parts of the variance are estimated by independent chi-squares, so the chance is the mean over `SAMPLES` of them, which
    are the same in each call.
    """
    import numpy as np
    from scipy.special import chdtri, ndtr, stdtrit

    parts = _parts(protocol, effect, raters, prompts, assumed)
    freedoms = (raters - 1, prompts - 1, (raters - 1) * (prompts - 1))
    expected = (parts[0] + parts[2], parts[1] + parts[2], parts[2])
    uniforms = np.random.default_rng(0).random((3, SAMPLES))
    of_raters, of_prompts, rest = (
        mean * chdtri(freedom, uniform) / freedom
        for mean, freedom, uniform in zip(expected, freedoms, uniforms, strict=True)
    )
    variance = np.maximum(of_raters + of_prompts - rest, np.maximum(of_raters, of_prompts))
    freedom = variance**2 / (of_raters**2 / freedoms[0] + of_prompts**2 / freedoms[1] + rest**2 / freedoms[2])
    quantile = stdtrit(np.maximum(freedom, 1), (1 + confidence) / 2)
    half = quantile * np.sqrt(variance) * _width(protocol, effect)
    return float(ndtr((effect - half) / math.sqrt(sum(parts))).mean())


def num_checks(protocol: str) -> int:
    """Return how many obvious items find a rater who clicks at random, and hardly ever suspect a careful one."""
    from scipy.special import bdtr

    chance = chance_of_check(protocol)
    for number in range(3, 100):
        failed = most_failing(number)
        if failed >= 0 and float(bdtr(failed, number, chance)) >= LAZY_FOUND:
            return number
    raise AssertionError("100 checks find every rater who clicks at random")


def most_failing(checks: int) -> int:
    """Return the greatest number of right answers to so many checks that fails them; -1 if even none does not."""
    from scipy.special import bdtr

    return max(
        (right for right in range(checks + 1) if bdtr(right, checks, CAREFUL) < WRONGLY_SUSPECTED), default=-1
    )


def chance_of_check(protocol: str) -> float:
    """Return the chance to answer a check rightly without looking.

    A lazy rater who always picks a side is right in half of the pairs; among four levels one of four is right.
    """
    return 0.5 if protocol == PAIRED else 1 / len(answers_of(protocol))


def _parts(
    protocol: str, effect: float, raters: int, prompts: int, assumed: Assumptions
) -> tuple[float, float, float]:
    """Return the parts of the variance of the mean that are due to raters, prompts and the rest."""
    variance = _variance(protocol, effect, assumed)
    rest = 1 - assumed.between_raters - assumed.between_prompts
    return (
        variance * assumed.between_raters / raters,
        variance * assumed.between_prompts / prompts,
        variance * rest / (raters * prompts),
    )


def _items_of_prompt(protocol: str, models: int) -> int:
    """Return how many items a rater sees of each prompt, without repeats and checks."""
    return math.comb(models, 2) if protocol == PAIRED else models


def _width(protocol: str, effect: float) -> float:
    """Return how much wider Wilson's interval of a rate is than that of the mean, at the end next to one half."""
    won = 0.5 + effect
    return 0.5 / math.sqrt(won * (1 - won)) if protocol == PAIRED else 1.0


def _variance(protocol: str, effect: float, assumed: Assumptions) -> float:
    """Return the variance of one answer: 1, ½ or 0 of a pair, or the difference of two images' "excellent" (1 or 0)."""
    if protocol == PAIRED:
        won = 0.5 + effect
        return won * (1 - won) - assumed.ties / 4
    rates = (assumed.base_rate, assumed.base_rate + effect)
    return sum(rate * (1 - rate) for rate in rates)


def _require_range(
    protocol: str, effect: float, power: float, raters: int, confidence: float, assumed: Assumptions
) -> None:
    most = (1 - assumed.ties) / 2 if protocol == PAIRED else 1 - assumed.base_rate
    if not 0 < effect < most:
        raise ConfigError(f"effect {effect:g}: it must be between 0 and {most:g} (exclusive)")
    if not LEAST_CHANCE <= power < 1:
        raise ConfigError(f"power {power:g}: it must be at least 0.5 and below 1")
    if not LEAST_CHANCE <= confidence < 1:
        raise ConfigError(f"confidence {confidence:g}: it must be at least 0.5 and below 1")
    if raters < LEAST_RATERS:
        raise ConfigError(
            f"{raters} raters: a result for other raters than these needs at least 2; 3 or more are better"
        )


def _least(low: int, high: int, is_enough: Callable[[int], bool]) -> int | None:
    """Return the least number from low to high that is enough, if all greater ones are; None if none is."""
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low
