"""The table of all ratings as a Great Expectations suite. Single answers are checked by `answers.checked` before."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from srpo_core.data.expectations import great_expectations_library, validate_table
from srpo_core.rating.answers import LONGEST, SHORTEST
from srpo_core.rating.records import DIMENSIONS, KINDS, LEVEL_ANSWERS, PAIRED_ANSWERS, PROTOCOLS, Rating


def check_ratings(ratings: Sequence[Rating]) -> list[dict[str, Any]]:
    """Check the table: each rater, item and dimension once, known answers, times that are possible.

    Returns one entry per expectation. Raises `DataError` with the broken rule and the first offending rows.
    """
    import pandas as pd

    gxe = great_expectations_library().expectations
    sets = {
        "protocol": PROTOCOLS,
        "kind": KINDS,
        "dimension": DIMENSIONS,
        "answer": (*PAIRED_ANSWERS, *LEVEL_ANSWERS),
    }
    return validate_table(
        "ratings",
        pd.DataFrame(map(asdict, ratings), columns=list(Rating.__annotations__)),
        [
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["task", "rater", "item", "dimension"]),
            gxe.ExpectColumnValuesToBeBetween(column="seconds", min_value=SHORTEST, max_value=LONGEST),
            *(
                gxe.ExpectColumnValuesToNotBeNull(column=name)
                for name in ("rater", "item", "prompt", "first")
            ),
            *(
                gxe.ExpectColumnValuesToBeInSet(column=name, value_set=list(known))
                for name, known in sets.items()
            ),
        ],
    )
