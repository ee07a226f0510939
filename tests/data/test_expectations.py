import pandas as pd
import pytest

from srpo_core.data import expectations
from srpo_core.data.expectations import check_pairs, check_prompts
from srpo_core.data.rules import LONGEST_PROMPT
from srpo_core.errors import DataError

SPLITS = ["train", "validation", "test"]


def prompts(**changes):
    columns = {
        "prompt_id": [0, 1, 2],
        "prompt": ["cat", "dog", "road"],
        "split": SPLITS,
        "style": ["", "", "x"],
    }
    return pd.DataFrame(columns | changes)


def pairs(**changes):
    columns = {
        "pair_id": [0, 1],
        "split": ["train", "test"],
        "prompt": ["cat", "dog"],
        "preferred": ["train/a", "test/a"],
        "rejected": ["train/b", "test/b"],
        "style": ["", ""],
    }
    return pd.DataFrame(columns | changes)


def test_valid_tables_pass_and_every_rule_reports_its_figure():
    results = check_prompts(prompts(), SPLITS) + check_pairs(pairs())
    assert len(results) == 14
    assert all(result["success"] is True for result in results)
    assert {
        "expectation": "expect_column_values_to_be_unique",
        "column": "prompt",
        "success": True,
        "observed": {"element_count": 3, "unexpected_count": 0, "missing_count": 0},
    } in results
    assert {
        "expectation": "expect_table_row_count_to_be_between",
        "column": "",
        "success": True,
        "observed": 2,
    } in results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt": ["cat", "dog", "cat"]},
            r"table prompts: expect_column_values_to_be_unique \(prompt\) failed for 2 of 3 rows: "
            r"row 0: prompt_id='0', prompt='cat', split='train', style=''; row 2: .*split='test'",
        ),
        (
            {"prompt_id": [0, 1, 1]},
            r"values_to_be_unique \(prompt_id\) failed for 2 of 3 rows: row 1: .*; row 2:",
        ),
        (
            {"prompt": ["cat", "x" * (LONGEST_PROMPT + 1), "b"]},
            r"lengths.* failed for 1 of 3 rows: row 1: .*'x{60}'",
        ),
        (
            {"split": ["train", "train", "test"]},
            r"split\) failed: .*'partial_missing_list': \['validation'\]",
        ),
    ],
)
def test_a_table_of_prompts_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        check_prompts(prompts(**changes), SPLITS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rejected": ["train/b", "test/a"]},
            r"in_set \(images_differ\) failed for 1 of 2 rows: row 1: .*preferred='test/a', rejected='test/a'",
        ),
        (
            {"preferred": ["a", "test/a"]},
            r"match_regex \(preferred\) failed for 1 of 2 rows: row 0: .*preferred='a'",
        ),
        (
            {"split": ["train", "train"]},
            r"table pairs: .*\(split\) failed: .*'partial_missing_list': \['test'\]",
        ),
    ],
)
def test_a_table_of_pairs_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        check_pairs(pairs(**changes))


def test_an_empty_table_of_pairs_is_refused():
    with pytest.raises(DataError, match=r"table pairs: expect_.* failed"):
        check_pairs(pairs().iloc[:0])


def test_no_rule_compares_columns_which_the_library_does_row_by_row(monkeypatch):
    rules, validate = [], expectations.validate_table

    def noted(table, frame, own):
        rules.extend(own)
        return validate(table, frame, own)

    monkeypatch.setattr(expectations, "validate_table", noted)
    check_prompts(prompts(), SPLITS)
    check_pairs(pairs())
    gxe = expectations.great_expectations_library().expectations
    # imported after it, which turns off the library's telemetry
    from great_expectations.expectations.expectation import (
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    row_by_row = (ColumnPairMapExpectation, MulticolumnMapExpectation)
    assert len(rules) == 14
    assert [rule for rule in rules if isinstance(rule, row_by_row)] == []
    slow = gxe.ExpectSelectColumnValuesToBeUniqueWithinRecord(column_list=["preferred", "rejected"])
    assert isinstance(slow, row_by_row)
