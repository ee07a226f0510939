"""Checks of whole tables as Great Expectations suites (pandas, no project on disk).

The rules for single records are in `hpd`: tables that are checked here consist of valid records.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from srpo_core.data.rules import LONGEST_PROMPT
from srpo_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN: Final = 3
_COUNTS: Final = ("element_count", "unexpected_count", "missing_count")


def check_prompts(prompts: "pd.DataFrame", splits: Sequence[str]) -> list[dict[str, Any]]:
    """Check the table of prompts: unique ids, unique prompts over all splits, all of `splits` present.

    Returns one entry per expectation. Raises `DataError` with the broken rule and the first offending rows.
    """
    gxe = great_expectations_library().expectations
    return validate_table(
        "prompts",
        prompts,
        [
            gxe.ExpectTableRowCountToBeBetween(min_value=len(splits)),
            gxe.ExpectColumnValuesToBeUnique(column="prompt_id"),
            gxe.ExpectColumnValuesToNotBeNull(column="prompt"),
            gxe.ExpectColumnValuesToBeUnique(column="prompt"),
            gxe.ExpectColumnValueLengthsToBeBetween(column="prompt", min_value=1, max_value=LONGEST_PROMPT),
            gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=list(splits)),
            gxe.ExpectColumnValuesToNotBeNull(column="style"),
        ],
    )


def check_pairs(pairs: "pd.DataFrame") -> list[dict[str, Any]]:
    """Check the table of pairs: unique ids, both splits present, two different images of the pair's split.

    Returns one entry per expectation. Raises `DataError` with the broken rule and the first offending rows.
    """
    gxe = great_expectations_library().expectations
    path = r"^(?:train|test)/.+"
    # the library compares two columns row by row in Python, so pandas compares them at once
    compared = pairs.assign(images_differ=pairs["preferred"] != pairs["rejected"])
    return validate_table(
        "pairs",
        compared,
        [
            gxe.ExpectTableRowCountToBeBetween(min_value=2),
            gxe.ExpectColumnValuesToBeUnique(column="pair_id"),
            gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=["train", "test"]),
            gxe.ExpectColumnValueLengthsToBeBetween(column="prompt", min_value=1, max_value=LONGEST_PROMPT),
            gxe.ExpectColumnValuesToMatchRegex(column="preferred", regex=path),
            gxe.ExpectColumnValuesToMatchRegex(column="rejected", regex=path),
            gxe.ExpectColumnValuesToBeInSet(column="images_differ", value_set=[True]),
        ],
    )


def validate_table(table: str, frame: "pd.DataFrame", expectations: Sequence[Any]) -> list[dict[str, Any]]:
    """Check a table: return one entry per expectation, or raise `DataError` with the first broken rule and its first rows."""
    gx = great_expectations_library()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas(table).add_dataframe_asset(table)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name=table, expectations=list(expectations))
    # the library groups the results by kind: sort them
    results = sorted(batch.validate(suite).results, key=lambda result: (_rule(result), _columns(result)))
    for result in results:
        if not result.success:
            raise DataError(_describe_failure(table, frame, result))
    return [
        {
            "expectation": _rule(result),
            "column": _columns(result),
            "success": bool(result.success),
            "observed": _observed(result.result),
        }
        for result in results
    ]


def great_expectations_library() -> Any:
    """Import the library with telemetry switched off, which it reads on import."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    return gx


def _rule(result: Any) -> str:
    return str(result.expectation_config.type)


def _columns(result: Any) -> str:
    kwargs = result.expectation_config.kwargs
    return str(kwargs.get("column") or ", ".join(kwargs.get("column_list", [])))


def _observed(figures: Mapping[str, Any]) -> Any:
    """The deciding figure: an observed value, or how many of how many values break the rule."""
    if figures.get("observed_value") is not None:
        return figures["observed_value"]
    return {key: figures[key] for key in _COUNTS if key in figures}


def _describe_failure(table: str, frame: "pd.DataFrame", result: Any) -> str:
    rule = " ".join(filter(None, (_rule(result), _columns(result) and f"({_columns(result)})")))
    if result.exception_info.get("exception_message"):
        return f"table {table}: {rule} could not be checked: {result.exception_info['exception_message']}"
    rows = result.result.get("partial_unexpected_index_list", [])[:_SHOWN]
    if not rows:
        found = {key: result.result[key] for key in sorted(result.result) if result.result[key] is not None}
        return f"table {table}: {rule} failed: {found}; correct ingest.source"
    count = result.result["unexpected_count"]
    shown = "; ".join(f"row {row}: {_shorten(frame.iloc[row].to_dict())}" for row in rows)
    return f"table {table}: {rule} failed for {count} of {len(frame)} rows: {shown}; correct ingest.source"


def _shorten(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={str(value)[:60]!r}" for key, value in row.items())
