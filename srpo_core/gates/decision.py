"""The decision: passed or refused, with every rule's figure and a reason in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_core.config import GateSettings
from srpo_core.errors import GateError
from srpo_core.gates.expectations import rules_that_hold
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.rules import judged, measure, sentence, threshold

SCHEMA_VERSION = 1
PASSED = "passed"
REFUSED = "refused"


def decide(pairs: Pairs, selection: Mapping[str, Any], *, seed: int, gate: GateSettings) -> dict[str, Any]:
    """Hold the evaluation to the gate's rules; the result is what `decision.json` holds.

    `selection` is select's result: with no admissible checkpoint the model is refused whatever it scores.

    Raises:
        ConfigError: a rule's metric is not a column of the evaluation.
    """
    measured = {name: measure(rule, pairs, seed=seed, gate=gate) for name, rule in gate.rules.items()}
    figures = {name: judged(rule, measured[name]) for name, rule in gate.rules.items()}
    held = rules_that_hold(gate.rules, figures)
    rules = [
        {
            "name": name,
            "metric": rule.metric,
            "against": rule.against,
            "value": _figure(measured[name].value),
            "low": _figure(measured[name].low),
            "high": _figure(measured[name].high),
            "bound": rule.bound,
            "threshold": threshold(rule),
            "side": "at_most" if rule.at_least is None else "at_least",
            "severity": rule.severity,
            "passed": held[name],
            "meaning": rule.meaning,
            "reason": sentence(rule, measured[name], passed=held[name], confidence=gate.confidence),
        }
        for name, rule in gate.rules.items()
    ]
    blocks = [f"{rule['name']}: {rule['reason']}" for rule in rules if _breaks(rule, "refuse")]
    if not selection["admissible"]:
        blocks.insert(0, f"no checkpoint was admissible: {selection['reason'].rstrip('.')}")
    return {
        "schema_version": SCHEMA_VERSION,
        "passed": not blocks,
        "verdict": REFUSED if blocks else PASSED,
        "reason": _reason(blocks, rules, pairs),
        "rules": rules,
        "confidence": gate.confidence,
        "num_prompts": len(pairs.prompts),
        "num_pairs": len(pairs.seeds),
    }


def require_passed(decision: Mapping[str, Any]) -> None:
    """Let a passed decision through; anything else is a `GateError` with its reason."""
    if decision.get("passed") is not True:
        reason = decision.get("reason", "the decision gives no reason.")
        raise GateError(f"the gate refused this model: {reason} See runs/report/report.html")


def _reason(blocks: Sequence[str], rules: Sequence[Mapping[str, Any]], pairs: Pairs) -> str:
    if blocks:
        return f"{'; '.join(blocks)}."
    warnings = [f"{rule['name']}: {rule['reason']}" for rule in rules if _breaks(rule, "warn")]
    evidence = f"on {len(pairs.seeds)} pairs of pictures of {len(pairs.prompts)} test prompts"
    if warnings:
        return f"no rule refuses {evidence}, with {len(warnings)} of {len(rules)} rules as a warning: {'; '.join(warnings)}."
    meanings = "; ".join(rule["meaning"] for rule in rules)
    return f"every rule holds {evidence}: {meanings}."


def _breaks(rule: Mapping[str, Any], severity: str) -> bool:
    return not rule["passed"] and rule["severity"] == severity


def _figure(value: float) -> float | None:
    return None if math.isnan(value) else value
