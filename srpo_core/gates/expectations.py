"""The rules as a Great Expectations suite over a table of one row, one column per rule."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from srpo_core.config import GateRule

SEVERITIES: Final[Mapping[str, str]] = MappingProxyType({"refuse": "critical", "warn": "warning"})


def rules_that_hold(rules: Mapping[str, GateRule], figures: Mapping[str, float]) -> dict[str, bool]:
    """Hold each rule's figure to its threshold; a figure that is not finite holds no threshold."""
    # read by the library when it is imported
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    suite = gx.ExpectationSuite(name="gate")
    for name, rule in rules.items():
        for expectation in _expectations(name, rule):
            suite.add_expectation(expectation)
    outcome = _one_row(context, figures).validate(suite)
    results: dict[str, list[bool]] = {name: [] for name in rules}
    for result in outcome.results:
        results[result.expectation_config.kwargs["column"]].append(bool(result.success))
    # a rule without all of its results does not hold
    return {
        name: all(found) and len(found) == len(_expectations(name, rules[name]))
        for name, found in results.items()
    }


def _expectations(name: str, rule: GateRule) -> list[Any]:
    from great_expectations import expectations as gxe

    severity = SEVERITIES[rule.severity]
    return [
        # a bound alone passes over a missing figure
        gxe.ExpectColumnValuesToNotBeNull(column=name, severity=severity),
        gxe.ExpectColumnValuesToBeBetween(
            column=name, min_value=rule.at_least, max_value=rule.at_most, severity=severity
        ),
    ]


def _one_row(context: Any, figures: Mapping[str, float]) -> Any:
    import numpy as np
    import pandas as pd

    finite = {name: figure if np.isfinite(figure) else np.nan for name, figure in figures.items()}
    frame = pd.DataFrame([finite], dtype="float64")
    source = context.data_sources.add_pandas("gate").add_dataframe_asset("rules")
    return source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
