"""How far each rater can be believed: repeats, obvious items, sides and speed. Nobody is dropped; a weight says how much counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from srpo_core.rating.power import CAREFUL, chance_of_check, most_failing
from srpo_core.rating.records import CHECK, PAIRED, PLAIN, REPEAT, Rating

PRIOR: Final = 5.0  # checks that the prior is worth, of which a careful rater's share is right
LEAST_WEIGHT: Final = 0.02  # nobody's answers are dropped
SUSPICIOUS: Final = 0.01  # chance of a careful rater to be as inconsistent, or as one-sided
FAST_SHARE: Final = 0.25  # of the median time of all raters
ONE: Final = 1.0


@dataclass(frozen=True)
class Rater:
    """What is known of a rater.

    answers: number of plain answers. checks, checks_right: obvious items, and those answered rightly. repeats, repeats_same:
    items shown again, and those with the same answer. sided, left: plain answers for one side, and those for the left one.
    seconds: median time of an answer. weight: of each answer, in (0, 1]. reasons: why the rater is reported, in words.
    """

    name: str
    answers: int
    checks: int
    checks_right: int
    repeats: int
    repeats_same: int
    sided: int
    left: int
    seconds: float
    weight: float
    reasons: tuple[str, ...] = ()


def rate_raters(ratings: Sequence[Rating]) -> dict[str, Rater]:
    """Measure each rater of the answers of one task or of several with one protocol, by name."""
    names = sorted({one.rater for one in ratings})
    own = {name: [one for one in ratings if one.rater == name] for name in names}
    answered = {(one.task, one.rater, one.item, one.dimension): one.answer for one in ratings}
    repeated = {name: _repeats(own[name], answered) for name in names}
    speed = median(one.seconds for one in ratings) if ratings else 0.0
    found = {}
    for name in names:
        others = [pair for other in names if other != name for pair in repeated[other]]
        found[name] = _measure(name, own[name], repeated[name], others, speed)
    return found


def weights(raters: Mapping[str, Rater]) -> dict[str, float]:
    """Return the weight of each rater's answers."""
    return {name: rater.weight for name, rater in raters.items()}


def skill(right: int, checks: int, chance: float) -> float:
    """Return the share of items that a rater looks at, from the checks, in (0, 1].

    It is (a - chance) / (1 - chance) of the posterior mean a of the accuracy, with a prior worth `PRIOR` checks of a careful rater,
    relative to a careful rater: one who passes all checks has 1, and so has one without any check.
    """
    accuracy = (right + PRIOR * CAREFUL) / (checks + PRIOR)
    return min(ONE, max(LEAST_WEIGHT, (accuracy - chance) / (CAREFUL - chance)))


def _measure(
    name: str, own: Sequence[Rating], repeated: Sequence[bool], others: Sequence[bool], speed: float
) -> Rater:
    checks = [one.answer == one.expected for one in own if one.kind == CHECK and one.expected]
    sides = [
        (one.answer == "first") == one.first_on_left
        for one in own
        if one.kind == PLAIN and one.protocol == PAIRED and one.answer in ("first", "second")
    ]
    seconds = median(one.seconds for one in own)
    chance = chance_of_check(own[0].protocol)
    reasons = [
        _failed_checks(checks),
        _inconsistent(repeated, others),
        _one_sided(sides),
        _fast(seconds, speed),
    ]
    return Rater(
        name=name,
        answers=sum(one.kind == PLAIN for one in own),
        checks=len(checks),
        checks_right=sum(checks),
        repeats=len(repeated),
        repeats_same=sum(repeated),
        sided=len(sides),
        left=sum(sides),
        seconds=seconds,
        weight=skill(sum(checks), len(checks), chance),
        reasons=tuple(filter(None, reasons)),
    )


def _repeats(own: Sequence[Rating], answered: Mapping[tuple[str, str, str, str], str]) -> list[bool]:
    """Return for each answered repeat whether the answer is the same as the first time."""
    return [
        one.answer == first
        for one in own
        if one.kind == REPEAT
        and (first := answered.get((one.task, one.rater, one.repeats, one.dimension))) is not None
    ]


def _failed_checks(checks: Sequence[bool]) -> str:
    if sum(checks) > most_failing(len(checks)):
        return ""
    return f"{sum(checks)} of {len(checks)} obvious items right"


def _inconsistent(own: Sequence[bool], others: Sequence[bool]) -> str:
    """Compare the repeats with those of the other raters, whose images are as hard to tell apart (Fisher's exact test)."""
    from scipy.stats import fisher_exact

    if not own or not others:
        return ""
    table = [[sum(own), len(own) - sum(own)], [sum(others), len(others) - sum(others)]]
    if float(fisher_exact(table, alternative="less").pvalue) >= SUSPICIOUS:
        return ""
    return f"the same answer to {sum(own)} of {len(own)} repeated items, other raters to {sum(others)} of {len(others)}"


def _one_sided(sides: Sequence[bool]) -> str:
    """Compare the share of answers for the left side with one half: sides are random, so neither is better."""
    from scipy.special import bdtr

    left, number = sum(sides), len(sides)
    if not number or 2 * float(bdtr(min(left, number - left), number, 0.5)) >= SUSPICIOUS:
        return ""
    return f"the left side in {left} of {number} answers"


def _fast(seconds: float, of_all: float) -> str:
    if seconds >= FAST_SHARE * of_all:
        return ""
    return f"{seconds:.1f} s per answer, all raters {of_all:.1f} s"


def careful_level(rater: Rater) -> str:
    """Describe how well a rater did in the checks and repeats, in a few words."""
    return f"{rater.checks_right}/{rater.checks} checks, {rater.repeats_same}/{rater.repeats} repeats"
