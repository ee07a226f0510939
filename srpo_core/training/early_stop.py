"""Early stop: training ends when it is proven that the images are beyond a limit, with a stated error rate.

After each checkpoint new images are compared with the base's. The evidence against each limit is a wealth that grows
only if the limit is exceeded (`betting`). The mean wealth over the limits reaches 1/alpha in at most a share alpha of
the runs that stay within all of them, over all checkpoints together. The judge is `select_judge`, which may also choose
the checkpoint; the gate's judge never influences training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np

from srpo_core.config import EarlyStop
from srpo_core.training.betting import Floats, evidence
from srpo_core.training.limits import weights

DIGITS: Final = 6


@dataclass(frozen=True)
class Bets:
    """What one evaluation says about one hypothesis.

    limit: name of the limit; name: the limit with the direction; growth: see `betting.log_growth`; figure: mean over
    the images; allowed: the mean that is the limit.
    """

    limit: str
    name: str
    growth: Sequence[float]
    figure: float
    allowed: float


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of the checkpoint after `step` steps."""

    step: int
    bets: Sequence[Bets]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes an equal evaluation."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` has returned."""
        return cls(values["step"], tuple(Bets(**one) for one in values["bets"]))


@dataclass(frozen=True)
class Curve:
    """The evidence after each of T evaluations.

    steps: (T,); total: (T,), the mean over the limits, which is compared with 1/alpha; by_name: (T,) by hypothesis, times
    its share of alpha, so each is compared with 1/alpha too.
    """

    steps: Sequence[int]
    total: Floats
    by_name: Mapping[str, Floats]


def curve_of(evaluations: Sequence[Evaluation], planned: int) -> Curve:
    """Compute the evidence after each evaluation.

    planned: number of evaluations of the whole run.
    """
    if not evaluations:
        return Curve([], np.array([]), {})
    first = evaluations[0].bets
    shares = weights([one.limit for one in first])
    by_name = {}
    for place, one in enumerate(first):
        growth = [evaluation.bets[place].growth for evaluation in evaluations]
        by_name[one.name] = shares[place] * evidence(growth, planned)
    return Curve([one.step for one in evaluations], np.sum(list(by_name.values()), axis=0), by_name)


def alarm_reason(evaluations: Sequence[Evaluation], rule: EarlyStop | None, planned: int) -> str | None:
    """Return why a run with these evaluations has to end after the last one; None if it continues."""
    if rule is None or not evaluations:
        return None
    curve, threshold = curve_of(evaluations, planned), 1 / rule.alpha
    if curve.total[-1] < threshold:
        return None
    last = evaluations[-1]
    strongest = max(curve.by_name, key=lambda name: float(curve.by_name[name][-1]))
    # a limit is named if it alone is proven to be exceeded; else only that some limit is, and the likeliest one is named
    named = [name for name, found in curve.by_name.items() if found[-1] >= threshold]
    figures = ", ".join(
        f"{one.name} (mean {one.figure:.3f}, limit {one.allowed:.3f})"
        for one in last.bets
        if one.name in (named or [strongest])
    )
    what = "the images are beyond the limit" if named else "the images are beyond some limit, most likely"
    return (
        f"by step {last.step} it is proven that {what} {figures}: evidence {curve.total[-1]:.3g}, at least 1/alpha = "
        f"{threshold:g}, so this is a false alarm in at most {100 * rule.alpha:g} % of runs"
    )


def alarm_outcome(
    evaluations: Sequence[Evaluation], rule: EarlyStop | None, planned: int
) -> dict[str, Any] | None:
    """Return the evidence as plain values for the outcome of training and the report; None without early stop."""
    if rule is None:
        return None
    curve = curve_of(evaluations, planned)
    return {
        "threshold": _rounded(1 / rule.alpha),
        "alpha": rule.alpha,
        "reason": alarm_reason(evaluations, rule, planned),
        "curve": [
            {
                "step": step,
                "evidence": _rounded(curve.total[place]),
                "limits": {name: _rounded(found[place]) for name, found in curve.by_name.items()},
            }
            for place, step in enumerate(curve.steps)
        ],
        "figures": [
            {
                "step": one.step,
                "name": test.name,
                "mean": _rounded(test.figure),
                "limit": _rounded(test.allowed),
            }
            for one in evaluations
            for test in one.bets
        ],
    }


def _rounded(value: float) -> float:
    """Round to six digits: more are rounding errors of the images, which depend on the machine."""
    return float(f"{value:.{DIGITS}g}")
