"""Answers in files, and what becomes of those that break a rule."""

import json
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
from simulated_people import rating

from srpo_core.errors import DataError
from srpo_core.rating.answers import RULES, Refused, checked
from srpo_core.rating.stored import list_files, read_ratings, write_ratings

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def test_answers_are_read_as_they_were_written_and_the_same_answers_give_the_same_bytes(tmp_path):
    answers = [rating(rater=name, item=item) for name in ("bob", "ada") for item in ("i1", "i0")]
    write_ratings(tmp_path / "a.parquet", answers)
    write_ratings(tmp_path / "b.parquet", reversed(answers))
    assert sorted(read_ratings([tmp_path / "a.parquet"]), key=str) == sorted(answers, key=str)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert [path.name for path in list_files(tmp_path)] == ["a.parquet", "b.parquet"]
    assert list_files(tmp_path / "none") == []


WRONG = [
    ("bad_value", {"answer": "third"}),
    ("bad_value", {"answer": None}),
    ("bad_value", {"answer": "excellent"}),
    ("bad_value", {"dimension": "realism"}),
    ("bad_value", {"protocol": "ranks"}),
    ("bad_value", {"kind": "other"}),
    ("bad_value", {"rater": ""}),
    ("bad_value", {"rater": "a\nb"}),
    ("bad_value", {"rater": "a" * 65}),
    ("bad_value", {"rater": 7}),
    ("bad_value", {"sample": True}),
    ("bad_value", {"sample": -1}),
    ("bad_value", {"seconds": float("nan")}),
    ("bad_value", {"seconds": "4"}),
    ("bad_value", {"first_on_left": 1}),
    ("bad_value", {"answered_at": "yesterday"}),
    ("bad_value", {"answered_at": "2026-11-30T12:00:00"}),
    ("bad_value", {"second": ""}),
    ("bad_value", {"second": "base"}),
    ("bad_value", {"kind": "repeat"}),
    ("bad_value", {"extra": 1}),
    ("unknown_item", {"item": "i9"}),
    ("impossible_time", {"seconds": 0.0}),
    ("impossible_time", {"seconds": -3.0}),
    ("impossible_time", {"seconds": 1e9}),
    ("impossible_time", {"answered_at": "2036-11-30T12:00:00+00:00"}),
    ("doubled_answer", {"item": "i0"}),
    ("doubled_answer", {"item": "i0", "answer": "first"}),
]


@pytest.mark.parametrize(("rule", "change"), WRONG, ids=str)
def test_an_answer_that_breaks_a_rule_is_set_aside_and_counted(rule, change, tmp_path):
    good = asdict(rating())
    refused = Refused()
    bad = {**good, "item": "i1", **change}
    found = checked([good, bad, {**good, "item": "i2"}], "x.json", refused, items={"i0", "i1", "i2"}, now=NOW)
    assert [one.item for one in found] == ["i0", "i2"]
    assert refused.counts == {rule: 1}
    assert refused.summary().startswith(f"1 answer set aside: {rule} 1 (first: x.json, record 1: ")
    refused.write(tmp_path / "quarantine.jsonl")
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["rule"] == rule
    assert json.loads(line)["record"] == 1


def test_rows_that_are_no_objects_and_lack_fields_are_set_aside_too():
    refused = Refused()
    lacking = {key: value for key, value in asdict(rating()).items() if key != "page"}
    assert checked([lacking, 3, None, "x", []], "x.json", refused, now=NOW) == []
    assert refused.counts["bad_value"] == 5
    assert "missing or additional: page" in refused.entries[0]["detail"]


def test_an_answer_that_is_there_already_is_doubled_over_files_and_imports(tmp_path):
    write_ratings(tmp_path / "a.parquet", [rating(), rating(item="i1")])
    write_ratings(tmp_path / "b.parquet", [rating(answer="tie"), rating(item="i2")])
    refused = Refused()
    found = read_ratings([tmp_path / "a.parquet", tmp_path / "b.parquet"], refused=refused)
    assert [one.item for one in found] == ["i0", "i1", "i2"]
    assert found[0].answer == "second"
    assert refused.counts == {"doubled_answer": 1}
    with pytest.raises(
        DataError, match=r"doubled_answer 1 \(first: b.parquet, record 0: 'ada' answered item"
    ):
        read_ratings([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_missing_or_damaged_file_is_one_line(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"x\.parquet is no table of ratings"):
        read_ratings([tmp_path / "x.parquet"])
    with pytest.raises(DataError, match="'srpo rate finish TASK' writes it"):
        read_ratings([tmp_path / "y.parquet"])


def test_every_rule_is_tried_above():
    assert {rule for rule, _ in WRONG} == set(RULES)
