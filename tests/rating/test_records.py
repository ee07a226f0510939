"""The schema of ratings, which the page, the statistics and the data share."""

from dataclasses import fields

import pytest

from srpo_core.rating import records


def test_the_columns_of_a_rating_are_those_of_the_published_schema():
    assert [field.name for field in fields(records.Rating)] == [
        "task",
        "protocol",
        "rater",
        "item",
        "kind",
        "prompt",
        "style",
        "sample",
        "first",
        "second",
        "dimension",
        "answer",
        "first_on_left",
        "repeats",
        "expected",
        "seconds",
        "page",
        "answered_at",
    ]


@pytest.mark.parametrize(
    ("protocol", "dimensions", "answers"),
    [
        ("paired", 1, {"first", "second", "tie", "both_bad"}),
        ("levels", 4, {"excellent", "good", "pass", "fail"}),
    ],
)
def test_a_protocol_has_four_answers_on_its_dimensions(protocol, dimensions, answers):
    assert len(records.dimensions_of(protocol)) == dimensions
    assert set(records.answers_of(protocol)) == answers
    assert "overall" in records.dimensions_of(protocol)
