"""What a rule measures: one statistic of the pairs, with its interval, all rules on the same resamples."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.config import GateRule, GateSettings
from srpo_core.errors import ConfigError
from srpo_core.gates.bootstrap import (
    Floats,
    Sample,
    per_rule_confidence,
    percentile_interval,
    resampled_means,
    why_no_interval,
)
from srpo_core.gates.pairs import ALIGNED, BASE, CHAMPION, Pairs

WINS: Final = "wins against "
TIE: Final = 0.5  # of a win
ROUNDING: Final = 1e-9  # a change of a mean's last bits is no gain
# By severity: whether the rule refuses (or warns) unless it is shown to hold, or only if shown to be broken.
BY_PROOF_OF_BREACH: Final = frozenset({"veto", "hacking"})

Column = tuple[str, str, float]  # (model, metric, 0), or ("wins against <model>", metric, tie)
Means = Mapping[Column, Floats]


@dataclass(frozen=True)
class Measurement:
    """A statistic with its interval; NaN where it could not be measured, `fault` then says why.

    draws: the statistic on every resample, (R,); confidence: of the interval.
    """

    value: float
    low: float
    high: float
    confidence: float
    draws: Floats
    fault: str = ""


@dataclass(frozen=True)
class Comparison:
    """One way to hold a model against another.

    columns: what has to be averaged; statistic: from those averages to the figure; neutral: the figure of
    two equal models.
    """

    columns: Callable[[GateRule], list[Column]]
    statistic: Callable[[list[Floats]], Floats]
    neutral: float


COMPARISONS: Final[Mapping[str, Comparison]] = MappingProxyType(
    {
        "difference": Comparison(
            lambda rule: [(ALIGNED, rule.metric, 0.0), (rule.against, rule.metric, 0.0)],
            lambda means: means[0] - means[1],
            neutral=0.0,
        ),
        "ratio": Comparison(
            lambda rule: [(ALIGNED, rule.metric, 0.0), (rule.against, rule.metric, 0.0)],
            lambda means: np.where(means[1] > 0, means[0] / np.where(means[1] > 0, means[1], 1), np.nan),
            neutral=1.0,
        ),
        "win_rate": Comparison(
            lambda rule: [(f"{WINS}{rule.against}", rule.metric, rule.tie)],
            lambda means: means[0],
            neutral=0.5,
        ),
        "value": Comparison(
            lambda rule: [(ALIGNED, rule.metric, 0.0)], lambda means: means[0], neutral=math.nan
        ),
    }
)


def limits(rule: GateRule) -> tuple[float | None, float | None]:
    """The least and the greatest figure that the rule allows; None where it sets no limit.

    Of a rule that asks for a gain the margin itself is not allowed, for a model equal to the other meets it.
    """
    neutral = COMPARISONS[rule.compare].neutral
    beyond = ROUNDING if asks_for_gain(rule) else 0.0
    return {
        "at_least": (rule.margin + beyond, None),
        "at_most": (None, rule.margin - beyond),
        "within": (neutral - rule.margin, neutral + rule.margin),
    }[rule.side]


def asks_for_gain(rule: GateRule) -> bool:
    """Whether a rule to be shown has the figure of two equal models for its margin: any change, but a change."""
    neutral = COMPARISONS[rule.compare].neutral
    return rule.severity not in BY_PROOF_OF_BREACH and rule.side != "within" and rule.margin == neutral


def applies(rule: GateRule, pairs: Pairs) -> bool:
    """Whether there is something to compare with: the first model of all has no champion before it."""
    return rule.against != CHAMPION or pairs.champion is not None


def objective_rule(gate: GateSettings) -> GateRule:
    """The question that arms the rules of severity hacking: did the training objective rise?"""
    return GateRule(
        metric=gate.objective,
        against="base",
        compare="difference",
        side="at_least",
        margin=0.0,
        severity="refuse",
        meaning="the training objective rose",
    )


def measure_rules(
    rules: Mapping[str, GateRule], pairs: Pairs, *, seed: int, gate: GateSettings
) -> dict[str, Measurement]:
    """Measure every rule that applies.

    The rules of severity veto and hacking share one error: any of them may refuse, so each gets a wider
    interval (`per_rule_confidence`).

    Raises:
        ConfigError: a rule's metric was not measured.
    """
    for rule in rules.values():
        if rule.metric not in pairs.aligned:
            raise ConfigError(
                f"gate: metric {rule.metric!r} is not in the evaluation: known are "
                f"{', '.join(pairs.metrics)}; add it to evaluate.metrics in params.yaml or change the rule"
            )
    used = {name: rule for name, rule in rules.items() if applies(rule, pairs)}
    columns = list(
        dict.fromkeys(c for rule in used.values() for c in COMPARISONS[rule.compare].columns(rule))
    )
    by_prompt = np.column_stack([_by_prompt(pairs, column) for column in columns])
    draws = resampled_means(
        by_prompt, pairs.styles, resamples=gate.resamples, generator=np.random.default_rng(seed)
    )
    point = dict(zip(columns, by_prompt.mean(0, keepdims=True).T, strict=True))
    means = dict(zip(columns, draws.T, strict=True))
    any_of = per_rule_confidence(
        gate.confidence, sum(rule.severity in BY_PROOF_OF_BREACH for rule in used.values())
    )
    sample = Sample(len(pairs.prompts), len(set(pairs.styles)))
    return {
        name: _measure(
            rule,
            point,
            means,
            sample,
            confidence=any_of if rule.severity in BY_PROOF_OF_BREACH else gate.confidence,
            fault=_fault(rule, pairs),
        )
        for name, rule in used.items()
    }


def _measure(
    rule: GateRule, point: Means, means: Means, sample: Sample, *, confidence: float, fault: str
) -> Measurement:
    comparison = COMPARISONS[rule.compare]
    columns = comparison.columns(rule)
    value = float(comparison.statistic([point[column] for column in columns])[0])
    draws = comparison.statistic([means[column] for column in columns])
    if fault or not math.isfinite(value) or not np.isfinite(draws).all():
        why = fault or f"the mean of {rule.metric} it is divided by is not above 0"
        return Measurement(math.nan, math.nan, math.nan, confidence, draws, why)
    low, high = percentile_interval(draws, sample, confidence=confidence)
    why = why_no_interval(sample, resamples=len(draws), confidence=confidence)
    return Measurement(value, low, high, confidence, draws, why)


def chance_of_refusing_an_equal(
    rules: Mapping[str, GateRule], measured: Mapping[str, Measurement]
) -> float | None:
    """The chance in [0, 1] that a model equal to the base fails a rule which equality satisfies; None without any.

    From the spread of these pairs: the resampled statistics, moved to where they would lie if nothing had
    changed, are taken for outcomes of equal models, each with an interval as wide as the one measured.
    Rules that ask for a gain are left out, since an equal model ought to fail them; a rule of severity
    hacking counts as armed, so the figure is a little high. None as well where a rule that counts has a fault,
    for what it would do is not known.
    """
    counted = [
        name
        for name, rule in rules.items()
        if name in measured and rule.against == BASE and rule.severity != "warn" and _equality_satisfies(rule)
    ]
    if not counted or any(measured[name].fault for name in counted):
        return None
    failed = [
        _fails(
            rules[name],
            measured[name].draws - measured[name].value + COMPARISONS[rules[name].compare].neutral,
            measured[name],
        )
        for name in counted
    ]
    return float(np.mean(np.any(failed, axis=0)))


def _fails(rule: GateRule, outcomes: Floats, measured: Measurement) -> NDArray[np.bool_]:
    """Which outcomes (R,) the rule would refuse if each had an interval of the measured width."""
    low = outcomes + (measured.low - measured.value)
    high = outcomes + (measured.high - measured.value)
    least, greatest = limits(rule)
    # a breach must be shown by the far end of the interval, holding by the near one
    near, far = (high, low) if rule.severity in BY_PROOF_OF_BREACH else (low, high)
    failed = np.zeros(len(outcomes), dtype=bool)
    if least is not None:
        failed |= near < least
    if greatest is not None:
        failed |= far > greatest
    return failed


def _equality_satisfies(rule: GateRule) -> bool:
    neutral = COMPARISONS[rule.compare].neutral
    least, greatest = limits(rule)
    return (least is None or least <= neutral) and (greatest is None or greatest >= neutral)


def _by_prompt(pairs: Pairs, column: Column) -> Floats:
    model, metric, tie = column
    if not model.startswith(WINS):
        figures = _figures(pairs, model)[metric]
        return pairs.by_prompt(np.where(np.isfinite(figures), figures, np.nan))
    ours, theirs = pairs.aligned[metric], _figures(pairs, model.removeprefix(WINS))[metric]
    return pairs.by_prompt(np.where(np.abs(ours - theirs) <= tie, TIE, (ours > theirs).astype(float)))


def _figures(pairs: Pairs, model: str) -> Mapping[str, Floats]:
    if model == CHAMPION:
        assert pairs.champion is not None, "a rule against the champion applies only if there is one"
        return pairs.champion
    return pairs.base if model == BASE else pairs.aligned


def _fault(rule: GateRule, pairs: Pairs) -> str:
    """What makes the rule's figures unusable, in words, or nothing."""
    models = [ALIGNED] if rule.compare == "value" else [ALIGNED, rule.against]
    bad = np.flatnonzero(_any(~np.isfinite(_figures(pairs, model)[rule.metric]) for model in models))
    if not len(bad):
        return ""
    first = bad[0]
    where = f"prompt {pairs.prompts[pairs.prompt_index[first]]!r}, seed {pairs.seeds[first]}"
    return f"{rule.metric} is not a number in {len(bad)} of the pairs of images (first: {where})"


def _any(masks: Iterable[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    together: NDArray[np.bool_] = np.logical_or.reduce(list(masks))
    return together
