import io
import json
import logging

import pytest

from srpo_core import artifacts
from srpo_core.config import IngestRules
from srpo_core.data.rules import (
    KEPT_WITH_WARNING,
    LARGEST_ASPECT,
    LONGEST_PROMPT,
    SHORTEST_SIDE,
    Findings,
    Problem,
    one_line,
    open_findings,
)
from srpo_core.errors import DataError


def problem(rule="bad_number", record=3, **changes):
    return Problem(
        **{"file": "train.json", "record": record, "rule": rule, "detail": "rank: is inf", **changes}
    )


@pytest.fixture
def quarantine():
    return io.StringIO()


@pytest.fixture
def set_aside(quarantine):
    """Return a function that reads the quarantine."""
    return lambda: [json.loads(line) for line in quarantine.getvalue().splitlines()]


def test_a_critical_problem_ends_the_run_with_file_record_and_rule(ingest_settings, quarantine, set_aside):
    findings = Findings(ingest_settings(on_bad_record="stop"), quarantine)
    with pytest.raises(DataError, match=r"^train.json: record 3: rank: is inf$"):
        findings.report(problem())
    assert [entry["record"] for entry in set_aside()] == [3]


def test_in_quarantine_a_critical_problem_sets_the_record_aside_with_file_record_rule_and_text(
    ingest_settings, quarantine, set_aside
):
    findings = Findings(ingest_settings(on_bad_record="quarantine"), quarantine)
    assert findings.report(problem(text="{" + "x" * 1000))
    assert set_aside() == [
        {
            "file": "train.json",
            "record": 3,
            "rule": "bad_number",
            "severity": "critical",
            "detail": "rank: is inf",
            "text": "{" + "x" * 499,
        }
    ]


@pytest.mark.parametrize("rule", sorted(IngestRules.model_fields))
def test_a_warning_keeps_a_record_that_the_tables_can_hold_and_sets_another_aside(
    ingest_settings, quarantine, set_aside, rule
):
    findings = Findings(ingest_settings(rules={rule: "warning"}, on_bad_record="stop"), quarantine)
    assert findings.report(problem(rule)) is (rule not in KEPT_WITH_WARNING)
    assert len(set_aside()) == (rule not in KEPT_WITH_WARNING)
    findings.count("train.json", 10)
    findings.require_few_bad()
    assert findings.summary()["bad"] == 0
    assert findings.summary()["rules"][rule] == {
        "severity": "warning",
        "found": 1,
        "set_aside": len(set_aside()),
        "first": "train.json: record 3: rank: is inf",
    }


def test_more_bad_records_than_the_share_allows_end_the_run_with_counts_by_rule(ingest_settings, quarantine):
    findings = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=0.02), quarantine)
    findings.count("train.json", 90)
    findings.count("test.json", 10)
    findings.report(problem("doubled_record", 0))  # a warning does not count
    findings.report(problem("bad_number", 1))
    findings.report(problem("empty_text", 2))
    findings.require_few_bad()
    findings.report(problem("empty_text", 4))
    expected = r"^3 of 100 records are bad \(bad_number 1, empty_text 2\), more than the share 0.02 that .*max_bad_share"
    with pytest.raises(DataError, match=expected) as caught:
        findings.require_few_bad()
    assert "the first is train.json: record 1: rank: is inf" in str(caught.value)


def test_each_broken_rule_is_logged_in_one_line(ingest_settings, quarantine, caplog):
    caplog.set_level(logging.WARNING)
    findings = Findings(ingest_settings(on_bad_record="quarantine"), quarantine)
    for record in range(3):
        findings.report(problem("contradiction", record, detail="says\nno"))
    findings.report(problem("tied_record", 7))
    findings.log()
    assert caplog.messages == [
        r"contradiction: 3 (kept), the first is train.json: record 0: says\nno",
        "tied_record: 1 (1 set aside), the first is train.json: record 7: rank: is inf",
    ]


def test_the_quarantine_is_written_even_if_the_run_ends(ingest_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError), open_findings(ingest_settings(on_bad_record="stop")) as findings:
        findings.report(problem(text="\ud83d"))
    (line,) = artifacts.QUARANTINE.read_text(encoding="ascii").splitlines()
    assert json.loads(line)["text"] == "\ud83d"


def test_another_pass_over_a_file_leaves_out_the_same_records_and_counts_nothing(ingest_settings, quarantine):
    findings = Findings(ingest_settings(on_bad_record="stop"), quarantine)
    again = findings.of_another_pass()
    assert again.report(problem("bad_number"))
    assert not again.report(problem("prompt_spelling"))
    assert quarantine.getvalue() == ""
    assert findings.summary()["rules"]["bad_number"]["found"] == 0


def test_the_descriptions_of_the_rules_have_the_limits_of_the_code():
    fields = IngestRules.model_fields
    assert f"{LONGEST_PROMPT:,}" in fields["long_prompt"].description
    assert f"less than {SHORTEST_SIDE} pixels" in fields["small_image"].description
    assert f"more than {LARGEST_ASPECT} times" in fields["elongated_image"].description


def test_a_detail_is_one_line_that_every_terminal_prints():
    assert one_line("a\nb\x00\ud83d\u200b\u00e9") == r"a\nb\x00\ud83d\u200bé"
    assert len(one_line("x" * 10_000)) < 600
