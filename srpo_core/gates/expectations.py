"""The rules as a Great Expectations suite over a table with one row: the bounds of each rule's interval."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from srpo_core.config import GateRule
from srpo_core.gates.rules import BY_PROOF_OF_BREACH, Measurement, limits

SEVERITIES: Final[Mapping[str, str]] = MappingProxyType(
    {"refuse": "critical", "veto": "critical", "hacking": "critical", "warn": "warning"}
)
LOW, HIGH = "low", "high"


def rules_that_hold(
    rules: Mapping[str, GateRule], measured: Mapping[str, Measurement], *, armed: bool
) -> dict[str, bool]:
    """Check the bounds of each measured rule's interval against its limits; a figure that is not finite fails.

    armed: whether the training objective rose or may have risen. If not, a rule of severity hacking only needs finite
    figures.
    """
    # the library reads this variable on import
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    suite = gx.ExpectationSuite(name="gate")
    asked = {name: _expectations(name, rules[name], armed=armed) for name in measured}
    for expectation in (one for expectations in asked.values() for one in expectations):
        suite.add_expectation(expectation)
    outcome = _one_row(context, measured).validate(suite)
    results: dict[str, list[bool]] = {name: [] for name in measured}
    for result in outcome.results:
        name, _, _ = result.expectation_config.kwargs["column"].rpartition(" ")
        results[name].append(bool(result.success))
    # a rule with missing results does not hold
    return {name: all(found) and len(found) == len(asked[name]) for name, found in results.items()}


def _expectations(name: str, rule: GateRule, *, armed: bool) -> list[Any]:
    from great_expectations import expectations as gxe

    severity = SEVERITIES[rule.severity]
    # a limit alone ignores a missing figure
    asked = [
        gxe.ExpectColumnValuesToNotBeNull(column=f"{name} {end}", severity=severity) for end in (LOW, HIGH)
    ]
    if rule.severity == "hacking" and not armed:
        return asked
    least, greatest = limits(rule)
    # the bound nearer to the limit must show that the rule holds, the other one that it is broken
    near, far = (HIGH, LOW) if rule.severity in BY_PROOF_OF_BREACH else (LOW, HIGH)
    if least is not None:
        asked.append(
            gxe.ExpectColumnValuesToBeBetween(column=f"{name} {near}", min_value=least, severity=severity)
        )
    if greatest is not None:
        asked.append(
            gxe.ExpectColumnValuesToBeBetween(column=f"{name} {far}", max_value=greatest, severity=severity)
        )
    return asked


def _one_row(context: Any, measured: Mapping[str, Measurement]) -> Any:
    import numpy as np
    import pandas as pd

    ends = {
        f"{name} {end}": value if np.isfinite(value) else np.nan
        for name, one in measured.items()
        for end, value in ((LOW, one.low), (HIGH, one.high))
    }
    frame = pd.DataFrame([ends], dtype="float64")
    source = context.data_sources.add_pandas("gate").add_dataframe_asset("rules")
    return source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
