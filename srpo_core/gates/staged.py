"""Whether an evaluation may end at a stage: every rule is decided, or one that is broken refuses the model."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from srpo_core.config import GateRule, GateSettings
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.completeness import unmeasured
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.people import automatic_rules, is_people
from srpo_core.gates.rules import (
    BY_PROOF_OF_BREACH,
    Measurement,
    limits,
    measure_rules,
    objective_rule,
    whole_confidences,
)
from srpo_core.gates.shares import lower_end
from srpo_core.gates.spending import Stage, spent_at

Outcome = Literal["passes", "refused", "undecided"]

OBJECTIVE: Final = "objective"
HOLDS: Final = "holds "  # before the name of a rule that is to be shown to hold
BROKEN: Final = "broken "  # the same, to be broken


def outcome(
    pairs: Pairs, selection: Mapping[str, Any], *, seed: int, gate: GateSettings, stage: Stage
) -> Outcome:
    """Return what the figures of the prompts until a stage show, at the confidence of this stage.

    - refused: a rule is shown to be broken (of severity hacking: while the objective is shown to rise), or select found no
      admissible checkpoint.
    - passes: every rule is shown to hold, those of severity veto and hacking, too. Not being shown to be broken is not enough
      for these: with fewer prompts they would find less. As all must hold, they need not share an error rate for this.
    - undecided: neither. Rules of severity warn decide nothing.

    A figure that all images have together has no interval. It may hold at a stage but refuses only at the last one, because
    some of these figures are larger for fewer images. Rules about people's ratings are not known yet, so they do not refuse, and
    while there is one of another severity than warn no model passes early.
    """
    if not selection["admissible"]:
        return "refused"
    rules = {name: rule for name, rule in automatic_rules(gate.rules).items() if rule.severity != "warn"}
    asked = {name: rule.model_copy(update={"severity": "refuse"}) for name, rule in rules.items()}
    refusing = {name: rule for name, rule in rules.items() if rule.severity in BY_PROOF_OF_BREACH}
    # on the same resamples, each by the name under which it is asked for
    together = {
        OBJECTIVE: objective_rule(gate),
        **{f"{HOLDS}{name}": rule for name, rule in asked.items()},
        **{f"{BROKEN}{name}": rule for name, rule in refusing.items()},
    }
    measured = measure_rules(together, pairs, seed=seed, gate=gate, stage=stage)
    objective = measured[OBJECTIVE]
    rose = not objective.fault and objective.low > 0
    whole = whole_confidences(together, gate)
    for name, rule in rules.items():
        key = f"{BROKEN if name in refusing else HOLDS}{name}"
        counts = key in measured and (rose or rule.severity != "hacking")
        if counts and is_broken(rule, measured[key], pairs, stage, whole[key]):
            return "refused"
    found = {name: measured[f"{HOLDS}{name}"] for name in asked if f"{HOLDS}{name}" in measured}
    waits = any(is_people(rule.metric) and rule.severity != "warn" for rule in gate.rules.values())
    passes = (
        not waits and not unmeasured(pairs) and all(holds(asked[name], one) for name, one in found.items())
    )
    return "passes" if passes else "undecided"


def holds(rule: GateRule, one: Measurement) -> bool:
    """Whether the whole interval is within the rule's limits."""
    least, greatest = limits(rule)
    inside = (least is None or one.low >= least) and (greatest is None or one.high <= greatest)
    return not one.fault and inside


def is_broken(rule: GateRule, one: Measurement, pairs: Pairs, stage: Stage, whole: float) -> bool:
    """Whether no part of the interval is within the rule's limits; whole: its confidence for all prompts at once."""
    comparison, (least, greatest) = COMPARISONS[rule.compare], limits(rule)
    if one.fault or (comparison.direct is not None and comparison.counts is None):
        return False
    low = one.low
    if comparison.counts is not None:
        total = len(pairs.prompts) if comparison.counts == "prompts" else len(pairs.seeds)
        low = lower_end(round(one.value * total), total, 1 - spent_at(1 - whole, stage.shares)[stage.number])
    return (least is not None and one.high < least) or (greatest is not None and low > greatest)
