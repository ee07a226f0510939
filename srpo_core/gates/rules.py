"""Measuring rules: one statistic of the pairs with its interval, all rules on the same resamples."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.artifacts import ALIGNED, BASE, CHAMPION
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
from srpo_core.gates.bounded import Range, bounded_interval
from srpo_core.gates.comparisons import COMPARISONS, WINS, Column, require_valid_rules
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.people import automatic_rules, is_people
from srpo_core.gates.spending import Stage

TIE: Final = 0.5  # of a win
ROUNDING: Final = 1e-9  # a change in the last bits of a mean is no gain
# Rules of these severities refuse only if they are shown to be broken; the others, unless they are shown to hold.
BY_PROOF_OF_BREACH: Final = frozenset({"veto", "hacking"})

Means = Mapping[Column, Floats]


@dataclass(frozen=True)
class Measurement:
    """A statistic with its interval; NaN if it could not be measured, and `fault` is the reason.

    draws: the statistic of every resample, (R,); confidence: of the interval.
    """

    value: float
    low: float
    high: float
    confidence: float
    draws: Floats
    fault: str = ""


def limits(rule: GateRule) -> tuple[float | None, float | None]:
    """The lowest and the highest figure that the rule allows; None for no limit.

    A rule that asks for a gain does not allow the margin itself, because a model equal to the other one meets it.
    """
    neutral = COMPARISONS[rule.compare].neutral
    beyond = ROUNDING if asks_for_gain(rule) else 0.0
    return {
        "at_least": (rule.margin + beyond, None),
        "at_most": (None, rule.margin - beyond),
        "within": (neutral - rule.margin, neutral + rule.margin),
    }[rule.side]


def asks_for_gain(rule: GateRule) -> bool:
    """Whether the rule must be shown to hold and its margin is the figure of two equal models: any gain will do."""
    neutral = COMPARISONS[rule.compare].neutral
    return rule.severity not in BY_PROOF_OF_BREACH and rule.side != "within" and rule.margin == neutral


def applies(rule: GateRule, pairs: Pairs) -> bool:
    """Whether there is a model to compare with: the first release has no champion."""
    return rule.against != CHAMPION or pairs.champion is not None


def objective_rule(gate: GateSettings) -> GateRule:
    """The rule that arms the rules of severity hacking: the training objective rose."""
    return GateRule(
        metric=gate.objective,
        against=BASE,
        compare="difference",
        side="at_least",
        margin=0.0,
        severity="refuse",
        meaning="the training objective rose",
    )


def measure_rules(
    rules: Mapping[str, GateRule],
    pairs: Pairs,
    *,
    seed: int,
    gate: GateSettings,
    stage: Stage | None = None,
    people: Mapping[str, Measurement] = MappingProxyType({}),
) -> dict[str, Measurement]:
    """Measure every rule that applies.

    Any rule of severity veto or hacking may refuse, so they share one error rate and each gets a wider interval
    (`per_rule_confidence`). At a stage of an evaluation the intervals are wider, too (`spending.py`).

    stage: None if all prompts are evaluated at once. people: the figures of rules about people's ratings, which are not in the
    evaluation; such a rule without a figure does not apply.

    Raises:
        ConfigError: a rule's metric was not measured, or its parts do not fit each other.
    """
    require_valid_rules(rules)
    own = automatic_rules(rules)
    for rule in own.values():
        if rule.metric not in pairs.aligned:
            raise ConfigError(
                f"gate: metric {rule.metric!r} is not in the evaluation: known are "
                f"{', '.join(pairs.metrics)}; add it to evaluate.metrics in params.yaml or change the rule"
            )
    used = {name: rule for name, rule in own.items() if applies(rule, pairs)}
    columns = list(
        dict.fromkeys(
            c
            for rule in used.values()
            if COMPARISONS[rule.compare].direct is None
            for c in COMPARISONS[rule.compare].columns(rule)
        )
    )
    by_prompt = np.array([_by_prompt(pairs, column) for column in columns]).reshape(-1, len(pairs.prompts)).T
    draws = resampled_means(
        by_prompt, pairs.styles, resamples=gate.resamples, generator=np.random.default_rng(seed)
    )
    point = dict(zip(columns, by_prompt.mean(0, keepdims=True).T, strict=True))
    means = dict(zip(columns, draws.T, strict=True))
    stage = stage or whole_stage(pairs)
    rated = {name: rule for name, rule in rules.items() if name in people and is_people(rule.metric)}
    whole = whole_confidences({**used, **rated}, gate)
    at_stage = {confidence: stage.confidence(confidence) for confidence in set(whole.values())}
    sample = Sample(len(pairs.prompts), len(set(pairs.styles)))
    found: dict[str, Measurement] = {}
    for name, rule in used.items():
        fault = _fault(rule, pairs)
        if COMPARISONS[rule.compare].direct is not None:
            confidence = _direct_confidence(rule, pairs, stage, whole[name])
            found[name] = _measure_directly(rule, pairs, confidence=confidence, fault=fault)
            continue
        confidence = at_stage[whole[name]]
        one = _measure(rule, point, means, sample, confidence=confidence, fault=fault)
        exact = stage.exact_confidence(whole[name])
        found[name] = _with_exact_ends(one, rule, pairs, seed=seed, confidence=exact)
    return found | {name: people[name] for name in rated}


def whole_stage(pairs: Pairs) -> Stage:
    """Return the only stage of an evaluation at once."""
    return Stage(0, (len(pairs.prompts),))


def whole_confidences(rules: Mapping[str, GateRule], gate: GateSettings) -> dict[str, float]:
    """Return the confidence of each rule's interval if all prompts are evaluated at once."""
    any_of = per_rule_confidence(
        gate.confidence, sum(rule.severity in BY_PROOF_OF_BREACH for rule in rules.values())
    )
    return {
        name: any_of if rule.severity in BY_PROOF_OF_BREACH else gate.confidence
        for name, rule in rules.items()
    }


def _direct_confidence(rule: GateRule, pairs: Pairs, stage: Stage, whole: float) -> float:
    counts = COMPARISONS[rule.compare].counts
    if counts is None:
        return whole
    units = len(pairs.seeds) // len(pairs.prompts) if counts == "images" else 1
    return stage.share_confidence(whole, rule.margin, units)


def _measure_directly(rule: GateRule, pairs: Pairs, *, confidence: float, fault: str) -> Measurement:
    """Measure a rule whose comparison needs no resamples."""
    direct = COMPARISONS[rule.compare].direct
    assert direct is not None, "the caller has checked"
    if fault:
        return Measurement(math.nan, math.nan, math.nan, confidence, np.array([math.nan]), fault)
    value, low, high = direct(pairs.aligned[rule.metric], pairs.prompt_index, confidence)
    return Measurement(value, low, high, confidence, np.array([value]))


def _measure(
    rule: GateRule, point: Means, means: Means, sample: Sample, *, confidence: float, fault: str
) -> Measurement:
    comparison = COMPARISONS[rule.compare]
    columns = comparison.columns(rule)
    value = float(comparison.statistic([point[column] for column in columns])[0])
    draws = comparison.statistic([means[column] for column in columns])
    if fault or not math.isfinite(value) or not np.isfinite(draws).all():
        why = fault or f"the mean of {rule.metric} that it is divided by is not above 0"
        return Measurement(math.nan, math.nan, math.nan, confidence, draws, why)
    low, high = percentile_interval(draws, sample, confidence=confidence)
    why = why_no_interval(sample, resamples=len(draws), confidence=confidence)
    return Measurement(value, low, high, confidence, draws, why)


def _with_exact_ends(
    measured: Measurement, rule: GateRule, pairs: Pairs, *, seed: int, confidence: float
) -> Measurement:
    """Widen the interval to the bound for bounded figures, where the bootstrap does not see rare losses.

    confidence: of that bound.

    This is the case for figures that are 0 or 1, for win rates, and if no resample differs from another one. In the
    last case the range of a figure without a known range is the one that the evaluation shows; if all its images have
    the same figure, there is no interval.
    """
    comparison = COMPARISONS[rule.compare]
    if measured.fault:
        return measured
    columns = comparison.columns(rule)
    ranges = [_known_range(pairs, column) for column in columns]
    flat = measured.high - measured.low <= ROUNDING
    if None in ranges and not flat:
        return measured
    low, high = bounded_interval(
        np.column_stack([_by_prompt(pairs, column) for column in columns]),
        [known or _seen_range(pairs, metric) for known, (_, metric, _) in zip(ranges, columns, strict=True)],
        comparison.statistic,
        confidence=confidence,
        resamples=len(measured.draws),
        generator=np.random.default_rng(seed),
    )
    wide = replace(measured, low=min(low, measured.low), high=max(high, measured.high))
    if wide.high - wide.low > ROUNDING or rule.severity in BY_PROOF_OF_BREACH:
        return wide
    why = f"{rule.metric} is the same number in all images of all models, which proves nothing"
    return replace(measured, low=math.nan, high=math.nan, fault=why)


def _known_range(pairs: Pairs, column: Column) -> Range | None:
    """The range of a column's figures by their nature: of wins, and of metrics that say yes or no; None for others."""
    model, metric, _ = column
    binary = model.startswith(WINS) or all(
        np.isin(figures[metric], (0.0, 1.0)).all() for figures in _models(pairs)
    )
    return (0.0, 1.0) if binary else None


def _seen_range(pairs: Pairs, metric: str) -> Range:
    together = np.concatenate([figures[metric] for figures in _models(pairs)])
    return float(together.min()), float(together.max())


def _models(pairs: Pairs) -> list[Mapping[str, Floats]]:
    return [pairs.base, pairs.aligned, *([pairs.champion] if pairs.champion is not None else [])]


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
    """Why the rule's figures cannot be used, in words; empty if they can."""
    models = [ALIGNED, rule.against] if COMPARISONS[rule.compare].needs_model else [ALIGNED]
    bad = np.flatnonzero(_any(~np.isfinite(_figures(pairs, model)[rule.metric]) for model in models))
    if not len(bad):
        return ""
    first = bad[0]
    where = f"prompt {pairs.prompts[pairs.prompt_index[first]]!r}, seed {pairs.seeds[first]}"
    return f"{rule.metric} is not a finite number in {len(bad)} image pairs (first: {where})"


def _any(masks: Iterable[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    together: NDArray[np.bool_] = np.logical_or.reduce(list(masks))
    return together
