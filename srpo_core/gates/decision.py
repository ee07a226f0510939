"""The decision: passed or refused, with the figure of every rule and a reason in words."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from srpo_core.config import GateRule, GateSettings
from srpo_core.errors import ArtifactError, GateError
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.completeness import unmeasured
from srpo_core.gates.equality import chance_of_refusing_an_equal, equality_satisfies
from srpo_core.gates.expectations import rules_that_hold
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.people import automatic_rules
from srpo_core.gates.rules import (
    BY_PROOF_OF_BREACH,
    Measurement,
    measure_rules,
    objective_rule,
    whole_stage,
)
from srpo_core.gates.sentences import sentence
from srpo_core.gates.spending import Stage

SCHEMA_VERSION: Final = 2
PASSED: Final = "passed"
REFUSED: Final = "refused"
OBJECTIVE: Final = "objective"


def decide(
    pairs: Pairs,
    selection: Mapping[str, Any],
    *,
    seed: int,
    gate: GateSettings,
    stage: Stage | None = None,
    people: Mapping[str, Measurement] = MappingProxyType({}),
) -> dict[str, Any]:
    """Check the evaluation against the gate's rules; the result is the content of `decision.json`.

    selection: select's result. Without an admissible checkpoint the model is refused, whatever it scores.
    stage: at which the evaluation ended; None if all prompts were evaluated at once. people: see `measure_rules`.

    Raises:
        ConfigError: a rule's metric, or the objective, was not measured.
    """
    stage = stage or whole_stage(pairs)
    asked = {OBJECTIVE: objective_rule(gate)}
    objective = measure_rules(asked, pairs, seed=seed, gate=gate, stage=stage)[OBJECTIVE]
    rose = None if objective.fault else objective.low > 0
    armed = rose is not False  # an unknown objective disarms nothing
    measured = measure_rules(gate.rules, pairs, seed=seed, gate=gate, stage=stage, people=people)
    held = rules_that_hold(gate.rules, measured, armed=armed)
    rules = [
        _entry(name, rule, measured.get(name), passed=held.get(name, True), rose=rose)
        for name, rule in gate.rules.items()
    ]
    blocks = [f"{rule['name']}: {rule['reason']}" for rule in rules if rule["verdict"] == "refuses"]
    blocks += _unmeasured(pairs, rules)
    if not selection["admissible"]:
        blocks.insert(0, f"no checkpoint was admissible: {selection['reason'].rstrip('.')}")
    return {
        "schema_version": SCHEMA_VERSION,
        "passed": not blocks,
        "verdict": REFUSED if blocks else PASSED,
        "reason": _reason(blocks, rules, pairs, gate) + _early(stage),
        "rules": rules,
        "objective": {"metric": gate.objective, "rose": rose, **_interval(objective)},
        "confidence": gate.confidence,
        "chance_of_refusing_an_equal": chance_of_refusing_an_equal(automatic_rules(gate.rules), measured),
        "num_prompts": len(pairs.prompts),
        "stages": list(stage.num_prompts),
        "num_pairs": len(pairs.seeds),
    }


def rule_figures(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Extract a decision's figures as a tree of numbers, which DVC compares between experiments."""
    return {
        "passed": decision["passed"],
        "rules": {
            rule["name"]: {key: rule[key] for key in ("value", "low", "high", "passed")}
            for rule in decision["rules"]
        },
    }


def require_passed(decision: Mapping[str, Any]) -> None:
    """Require that the decision is passed.

    Raises:
        GateError: the model was refused; the message gives the reason.
        ArtifactError: it passed under another schema version, whose keys may have another meaning.
    """
    if decision.get("passed") is not True:
        reason = decision.get("reason", "the decision gives no reason.")
        raise GateError(f"the gate refused this model: {reason} See runs/report/report.html")
    if decision.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"runs/gate/decision.json has schema version {decision.get('schema_version')!r}, known is {SCHEMA_VERSION}: "
            "run 'dvc repro --force -s gate' to decide anew"
        )


def _unmeasured(pairs: Pairs, rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe figures that are not finite and that no refusing rule reports: a damaged evaluation passes no model."""
    reported = {rule["metric"] for rule in rules if rule["verdict"] == "refuses" and rule["value"] is None}
    return [fault for metric, fault in unmeasured(pairs).items() if metric not in reported]


def _entry(
    name: str, rule: GateRule, measured: Measurement | None, *, passed: bool, rose: bool | None
) -> dict[str, Any]:
    broken = "warns" if rule.severity == "warn" else "refuses"
    return {
        "name": name,
        **rule.model_dump(mode="json"),
        **_interval(measured),
        "passed": passed,
        "verdict": "does not apply" if measured is None else "holds" if passed else broken,
        "reason": sentence(rule, measured, passed=passed, rose=rose),
    }


def _interval(measured: Measurement | None) -> dict[str, float | None]:
    if measured is None:
        return dict.fromkeys(("value", "low", "high", "confidence"))
    return {
        "value": _figure(measured.value),
        "low": _figure(measured.low),
        "high": _figure(measured.high),
        "confidence": measured.confidence,
    }


def _reason(
    blocks: Sequence[str], rules: Sequence[Mapping[str, Any]], pairs: Pairs, gate: GateSettings
) -> str:
    if blocks:
        return f"{'. '.join(blocks)}."
    warnings = [f"{rule['name']}: {rule['reason']}" for rule in rules if rule["verdict"] == "warns"]
    evidence = f"on {len(pairs.seeds)} image pairs of {len(pairs.prompts)} test prompts"
    if warnings:
        return (
            f"no rule refuses the model {evidence}, but {len(warnings)} of {len(rules)} rules warn: "
            f"{'. '.join(warnings)}."
        )
    proven = [rule for rule in rules if _is_proven(rule)]
    gains = [rule["meaning"] for rule in proven if _is_gain(gate.rules[rule["name"]])]
    gained = f": {'; '.join(gains)}" if gains else ""
    kept = len(proven) - len(gains)
    limits = f". {kept} rules that limit losses hold" if kept else ""
    vetoes = sum(rule["severity"] in BY_PROOF_OF_BREACH for rule in rules)
    signs = f". None of {vetoes} signs of reward hacking was found" if vetoes else ""
    return f"all rules hold {evidence}{gained}{limits}{signs}."


def _early(stage: Stage) -> str:
    if stage.is_last:
        return ""
    number, of = stage.number + 1, len(stage.num_prompts)
    return f" Decided at stage {number} of {of}, after {stage.size} of {stage.num_prompts[-1]} prompts."


def _is_gain(rule: GateRule) -> bool:
    """Whether a copy of the other model fails the rule."""
    return COMPARISONS[rule.compare].needs_model and not equality_satisfies(rule)


def _is_proven(rule: Mapping[str, Any]) -> bool:
    return rule["verdict"] == "holds" and rule["severity"] not in BY_PROOF_OF_BREACH


def _figure(value: float) -> float | None:
    return None if math.isnan(value) else value
