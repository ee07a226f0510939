import re
from pathlib import Path

import pytest

from srpo_core.config import ControlWords, load_settings
from srpo_core.data.changes import Changes
from srpo_core.data.kept import open_kept
from srpo_core.data.statistics import read_statistics
from srpo_core.report.data_figures import Figure, coverage, figures, moved
from srpo_core.report.data_page import choose_samples, data_page, diff_page
from srpo_core.report.data_text import example_lines, markdown_table

ROOT = Path(__file__).resolve().parents[2]
WORDS = ControlWords.of(["Ink"], ["3D"])
FINDINGS = {"tied_record": {"severity": "warning", "found": 3, "set_aside": 2}}


@pytest.fixture(scope="module")
def source():
    ingest = load_settings(ROOT / "params.yaml").ingest
    return open_kept(ingest.model_copy(update={"source": str(ROOT / "assets/tiny/hpd")}))


@pytest.fixture(scope="module")
def statistics(source):
    return read_statistics(source)


@pytest.fixture(scope="module")
def page(source, statistics):
    return data_page("data/emoji/0123456789ab", statistics, WORDS, FINDINGS, choose_samples(source))


def test_the_page_shows_every_part_of_a_version(page):
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Samples",
        "Styles",
        "Lengths of prompts",
        "Agreement of the annotators",
        "Control words",
        "What was set aside",
    ]
    for text in ("data/emoji/0123456789ab", "480 images", "food", "100.0%", "tied_record", "wanted"):
        assert text in page


def test_the_page_needs_nothing_but_itself(page):
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "default-src 'none'" in page


def test_each_sample_is_a_prompt_with_a_preferred_and_a_rejected_image(source):
    samples = choose_samples(source, 5)
    assert len({one.prompt for one in samples}) == 5
    order = {pair: choice.prompt for choice in source.choices("test") for pair in choice.pairs()}
    assert {one.prompt for one in samples} <= set(order.values())
    assert all(one.preferred.startswith("data:image/") and one.preferred != one.rejected for one in samples)


def test_text_of_the_data_is_escaped(statistics, source):
    hostile = "<script>alert(1)</script>\x1b[2J"
    changes = {"train": Changes(added=1, examples={"added": [hostile]})}
    for text in (diff_page("data/a/1", "data/a/2", changes, []), "\n".join(example_lines(changes))):
        assert "\x1b" not in text
        assert "\\x1b" in text
    assert "<script" not in diff_page("data/a/1", "data/a/2", changes, [])
    rows = markdown_table([Figure("styles", "a | <b>", 1)])
    assert rows.splitlines()[-1] == r"| styles | a \| \<b\> | 1 |"


@pytest.mark.parametrize(("findings", "text"), [(None, "Not known: "), ({}, "None: no record broke a rule")])
def test_the_page_says_whether_anything_was_set_aside(statistics, findings, text):
    assert text in data_page("data/a/1", statistics, WORDS, findings, [])


def test_words_are_counted_in_the_prompts_of_each_split(statistics):
    (row,) = (row for row in coverage(statistics, ControlWords.of(["Face"], ["3D"])) if row["word"] == "Face")
    expected = [sum("face" in prompt.split() for prompt in texts) for texts in statistics.prompts().values()]
    assert row["use"] == "wanted"
    assert [count for count, _ in row["counts"].values()] == expected
    assert sum(expected) > 0


def test_only_figures_that_differ_have_moved(statistics):
    before, after = figures(statistics, WORDS, {}), figures(statistics, WORDS, FINDINGS)
    assert moved(before, before) == []
    found = Figure("findings", "tied_record: found", 3)
    aside = Figure("findings", "tied_record: set aside", 2)
    assert moved(before, after) == [(None, found), (None, aside)]
    assert moved([Figure("g", "n", 1.0)], [Figure("g", "n", 0.5)]) == [
        (Figure("g", "n", 1.0), Figure("g", "n", 0.5))
    ]
    assert moved([], [Figure("g", "n", 0)]) == []


def test_a_page_of_the_comparison_shows_counts_and_figures():
    page = diff_page(
        "data/a/1",
        "data/a/2",
        {"train": Changes(added=1234, examples={"added": ["a cat"]})},
        [(Figure("agreement", "with the rank", 0.75, is_share=True), None)],
    )
    for text in ("data/a/1 → data/a/2", "1,234", "a cat", "75.0%", "–"):
        assert text in page
