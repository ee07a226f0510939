import io
import json
import logging
import re

import pytest

from srpo_core import artifacts
from srpo_core.cli.options import parse_changes
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
    findings.count("train.json", 100)
    findings.count("test.json", 1000)
    findings.report(problem("doubled_record", 0))  # a warning does not count
    findings.report(problem("bad_number", 1))
    findings.report(problem("empty_text", 2))
    findings.require_few_bad()
    findings.report(problem("empty_text", 4))
    expected = (
        r"^train\.json: 3 of 100 records are bad \(bad_number 1, empty_text 2\), and the share 0.02 of each file that "
        r"ingest\.max_bad_share allows is 2 here; the first is train\.json: record 1: rank: is inf\. "
        r".*quarantine\.jsonl has .*: correct the file, or allow more with --set ingest\.max_bad_share=0\.03$"
    )
    with pytest.raises(DataError, match=expected):
        findings.require_few_bad()


def test_the_bad_records_of_a_small_file_are_not_lost_among_the_good_ones_of_a_large_file(
    ingest_settings, quarantine
):
    findings = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=0.1), quarantine)
    findings.count("train.json", 10_000)
    findings.count("benchmark/anime.json", 10)
    findings.report(problem("empty_text", 4, file="benchmark/anime.json"))
    findings.require_few_bad()
    findings.report(problem("empty_text", 5, file="benchmark/anime.json"))
    with pytest.raises(
        DataError, match=r"^benchmark/anime\.json: 2 of 10 records .* is 1 here; .*_share=0\.2$"
    ):
        findings.require_few_bad()


def test_a_thousandth_of_a_small_file_allows_no_bad_record(ingest_settings, quarantine):
    findings = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=0.001), quarantine)
    findings.count("train.json", 800_000)
    findings.count("test.json", 400)
    for record in range(800):
        findings.report(problem("empty_text", record))
    findings.require_few_bad()
    findings.report(problem("empty_text", 0, file="test.json"))
    with pytest.raises(
        DataError, match=r"^test\.json: 1 of 400 .* is 0 here; .* --set ingest\.max_bad_share=0\.0025$"
    ):
        findings.require_few_bad()


def test_the_error_for_too_many_whole_records_also_names_the_rule_that_can_be_a_warning(
    ingest_settings, quarantine
):
    """So that one benchmark prompt that is trained on, of 800, does not need a larger share for all files and rules."""

    def findings(**rules):
        settings = ingest_settings(on_bad_record="quarantine", max_bad_share=0.001)
        own = Findings(
            settings.model_copy(update={"rules": settings.rules.model_copy(update=rules)}), quarantine
        )
        own.count("benchmark/photo.json", 800)
        own.report(problem("trained_benchmark_prompt", 5, file="benchmark/photo.json"))
        return own

    with pytest.raises(DataError) as caught:
        findings().require_few_bad()
    line = str(caught.value)
    assert line.endswith(
        "correct the file, make the rule a warning with --set "
        "ingest.rules.trained_benchmark_prompt=warning, or allow more with --set ingest.max_bad_share=0.0013"
    )
    counted = findings(
        **parse_changes(re.findall(r"--set (ingest\.rules\S+=warning)", line))["ingest"]["rules"]
    )
    counted.require_few_bad()
    assert counted.num_left_out == 1  # it is no prompt to evaluate with all the same


def test_the_error_for_damaged_records_does_not_offer_to_only_count_them(ingest_settings, quarantine):
    findings = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=0.001), quarantine)
    findings.count("train.json", 10)
    findings.report(problem("broken_record", 5))
    with pytest.raises(DataError, match=r"correct the file, or allow more with"):
        findings.require_few_bad()


@pytest.mark.parametrize(("bad", "read"), [(29, 100), (1, 3), (7, 7), (801, 800_000), (1, 400), (57, 9_973)])
def test_the_share_that_the_error_names_allows_the_bad_records(ingest_settings, bad, read):
    def findings(share):
        own = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=share), io.StringIO())
        own.count("train.json", read)
        for record in range(bad):
            own.report(problem("empty_text", record))
        return own

    with pytest.raises(DataError) as caught:
        findings(0.0).require_few_bad()
    findings(float(str(caught.value).rsplit("max_bad_share=", 1)[1])).require_few_bad()


def test_bad_images_are_compared_with_the_records_whose_images_were_checked(ingest_settings, quarantine):
    findings = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=0.02), quarantine)
    findings.count("train.json", 10_000)
    findings.set_with_checked_images({"train.json": 100})
    for record in range(3):
        findings.report(problem("empty_text", record))
    findings.report(problem("missing_image", 3))
    findings.report(problem("unreadable_image", 4))
    findings.require_few_bad()
    findings.report(problem("unreadable_image", 5))
    expected = (
        r"^train\.json: 3 of 100 records with a checked image are bad \(missing_image 1, unreadable_image 2\), "
        r".* is 2 here; the first is train\.json: record 3: "
    )
    with pytest.raises(DataError, match=expected):
        findings.require_few_bad()


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


@pytest.mark.parametrize(("share", "shown"), [(0.0, "0.001"), (0.02, "0.02")])
def test_the_error_for_the_first_bad_record_says_how_to_set_such_records_aside(
    ingest_settings, tmp_path, monkeypatch, share, shown
):
    monkeypatch.chdir(tmp_path)
    settings = ingest_settings(on_bad_record="stop", max_bad_share=share)
    with pytest.raises(DataError) as caught, open_findings(settings) as findings:
        findings.report(problem())
    assert str(caught.value) == (
        "train.json: record 3: rank: is inf. Correct it, or set bad records aside (this one breaks the rule bad_number): "
        f"ingest.on_bad_record=quarantine and ingest.max_bad_share={shown}"
    )


def test_the_error_for_the_first_whole_record_names_the_rule_that_can_be_a_warning(
    ingest_settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = ingest_settings(on_bad_record="stop", max_bad_share=0.001)
    with pytest.raises(DataError) as caught, open_findings(settings) as findings:
        findings.report(problem("trained_benchmark_prompt"))
    assert str(caught.value).endswith(
        ". Correct it, make its rule a warning (ingest.rules.trained_benchmark_prompt=warning), or set bad records "
        "aside (this one breaks the rule trained_benchmark_prompt): ingest.on_bad_record=quarantine and "
        "ingest.max_bad_share=0.001"
    )


@pytest.mark.parametrize("raised", [DataError("train.json: not a JSON list")])
def test_the_error_for_a_broken_file_does_not_offer_to_set_records_aside(
    ingest_settings, tmp_path, monkeypatch, raised
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught, open_findings(ingest_settings(on_bad_record="stop")):
        raise raised
    assert caught.value is raised


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
