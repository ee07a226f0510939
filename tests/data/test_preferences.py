import io
import json
import re

import pytest

from srpo_core.data.benchmark import benchmark_prompts
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import Findings
from srpo_core.errors import DataError


class Split:
    """Records of a split that are added one after the other, and what was found."""

    def __init__(self, ingest, split="train", trained=None):
        self.quarantine = io.StringIO()
        self.findings = Findings(ingest, self.quarantine)
        self.preferences = Preferences(split, self.findings, trained)
        self.number = 0

    def add(self, prompt, *images, ranks=None):
        ranks = ranks or tuple(range(len(images)))
        self.preferences.add(Choice("some.json", self.number, prompt, images, ranks))
        self.number += 1
        return self

    def pairs(self):
        rows = [row for table in self.preferences.pair_tables() for row in table.to_pylist()]
        return [(row["prompt"], row["preferred"], row["rejected"]) for row in rows]

    def counts(self):
        rules = self.findings.summary()["rules"]
        return {rule: (one["found"], one["set_aside"]) for rule, one in rules.items() if one["found"]}

    def set_aside(self):
        entries = map(json.loads, self.quarantine.getvalue().splitlines())
        return [(entry["record"], entry["rule"], entry["detail"]) for entry in entries]


@pytest.fixture
def split(ingest_settings):
    """Return a function that makes an empty split; critical problems set records aside."""

    def make(name="train", trained=None, **rules):
        return Split(ingest_settings(rules=rules, on_bad_record="quarantine"), name, trained)

    return make


def test_records_become_pairs_of_paths_in_their_order(split):
    own = split().add("a cat", "a", "b").add("a dog", "c", "d", "e", ranks=(2, 1, 2))
    assert own.pairs() == [
        ("a cat", "train/a", "train/b"),
        ("a dog", "train/d", "train/c"),
        ("a dog", "train/d", "train/e"),
    ]
    assert own.preferences.prompts() == ["a cat", "a dog"]
    assert own.preferences.images() == ["a", "b", "c", "d", "e"]
    assert own.counts() == {}


@pytest.mark.parametrize("prompt", ["a cat", "A  CAT ", "a c\u200bat"])
def test_a_record_that_repeats_an_earlier_one_in_any_spelling_is_dropped_and_named(split, prompt):
    own = split().add("a cat", "a", "b").add("a cat", "a", "c").add(prompt, "a", "b")
    assert len(own.pairs()) == 2
    assert own.counts()["doubled_record"] == (1, 1)
    assert own.set_aside() == [(2, "doubled_record", "says the same as some.json, record 0")]


def test_the_same_images_for_another_prompt_are_no_repetition(split):
    own = split().add("a cat", "a", "b").add("a dog", "a", "b").add("a fox", "b", "a")
    assert len(own.pairs()) == 3
    assert own.counts() == {}


def test_a_record_of_several_images_repeats_only_if_all_of_its_pairs_are_known(split):
    own = split().add("a cat", "a", "b", "c").add("a cat", "a", "b", "d").add("a cat", "b", "c")
    assert own.set_aside() == [(2, "doubled_record", "says the same as some.json, record 0")]


def test_a_pair_that_several_rankings_contain_is_a_row_once_as_long_as_one_of_them_stays(split):
    own = split().add("a cat", "d", "a", "b").add("a cat", "a", "b", "c").add("A cat", "b", "c", "e")
    pairs = [(prompt, preferred[-1], rejected[-1]) for prompt, preferred, rejected in own.pairs()]
    first = [("a cat", *pair) for pair in ("da", "db", "ab")]
    assert pairs == [
        *first,
        *(("a cat", *pair) for pair in ("ac", "bc")),
        *(("A cat", *pair) for pair in ("be", "ce")),
    ]
    own.preferences.report_images("unreadable_image", {"d": "image 'd' is broken"})
    assert ("a cat", "train/a", "train/b") in own.pairs()
    assert len(own.pairs()) == 5


def test_a_prompt_whose_records_were_all_removed_is_not_trained_on(split):
    train = (
        split(contradiction="critical").add("A cat", "a", "b").add("a cat", "b", "a").add("a dog", "a", "b")
    )
    assert (train.preferences.has("a cat"), train.preferences.place("a cat")) == (False, None)
    kept = benchmark_prompts([entry("a cat"), entry("a dog", 1)], train.preferences, train.findings)
    assert [one.prompt for one in kept] == ["a cat"]
    assert len(split("test", train.preferences).add("a cat", "c", "d").pairs()) == 1
    train.add("A  CAT", "e", "f")
    assert train.preferences.place("a cat") == ("A  CAT", ("some.json", 3))
    assert train.counts()["prompt_spelling"] == (1, 0)


@pytest.mark.parametrize("prompt", ["a cat", "A cat"])
def test_contradicting_records_are_kept_with_a_warning_and_counted(split, prompt):
    own = split(contradiction="warning").add("a cat", "a", "b").add(prompt, "b", "a")
    assert own.pairs() == [("a cat", "train/a", "train/b"), (prompt, "train/b", "train/a")]
    assert own.counts()["contradiction"] == (1, 0)


def test_both_of_two_contradicting_records_are_set_aside_if_that_is_critical(split):
    own = (
        split(contradiction="critical")
        .add("a cat", "a", "b")
        .add("a cat", "c", "d")
        .add("a cat", "b", "a", "e")
    )
    assert own.pairs() == [("a cat", "train/c", "train/d")]
    assert own.preferences.images() == ["c", "d"]
    assert own.set_aside() == [
        (2, "contradiction", "prefers 'b' to 'a', contrary to some.json, record 0"),
        (0, "contradiction", "is contradicted by some.json, record 2"),
    ]


def test_a_record_whose_images_all_tie_is_named_and_gives_no_pair_image_or_prompt(split):
    own = split().add("a cat", "a", "b", ranks=(1, 1)).add("a dog", "c", "d", "e", ranks=(1, 1, 2))
    assert own.set_aside() == [(0, "tied_record", "all images have the same rank, so none is preferred")]
    assert (own.preferences.prompts(), own.preferences.images()) == (["a dog"], ["c", "d", "e"])


@pytest.mark.parametrize(
    "spelling", ["A cat", "a  cat", " a\u00a0cat", "a cat\u200b", "\ufeffa cat", "a\tcat\n", "\u00adA CAT"]
)
def test_another_spelling_of_a_prompt_is_counted_once_and_kept_or_set_aside(split, spelling):
    own = split().add("a cat", "a", "b").add(spelling, "c", "d").add(spelling, "e", "f")
    assert own.counts() == {"prompt_spelling": (1, 0)}
    assert own.preferences.prompts() == ["a cat", spelling]
    own = (
        split(prompt_spelling="critical")
        .add("a cat", "a", "b")
        .add(spelling, "c", "d")
        .add(spelling, "e", "f")
    )
    assert own.counts() == {"prompt_spelling": (2, 2)}
    assert own.preferences.prompts() == ["a cat"]


@pytest.mark.parametrize("spelling", ["a cafe\u0301", "A CAF\u00c9", "a\u200b caf\u00e9"])
def test_a_test_record_with_a_training_prompt_in_any_spelling_is_left_out(split, spelling):
    train = split().add("a caf\u00e9", "a", "b")
    own = split("test", train.preferences).add(spelling, "c", "d").add("a dog", "c", "d")
    assert own.pairs() == [("a dog", "test/c", "test/d")]
    ((record, rule, detail),) = own.set_aside()
    assert (record, rule) == (0, "trained_test_prompt")
    assert detail.endswith("is also in some.json as 'a café' (record 0)")


def test_an_image_that_must_not_be_used_removes_every_record_that_uses_it(split):
    own = split().add("a cat", "a", "b").add("a dog", "c", "a").add("a fox", "d", "e")
    own.preferences.report_images("unreadable_image", {"a": "image 'a' is broken"})
    assert own.pairs() == [("a fox", "train/d", "train/e")]
    assert (own.preferences.prompts(), own.preferences.images()) == (["a fox"], ["d", "e"])
    assert [record for record, _, _ in own.set_aside()] == [0, 1]
    own.preferences.report_images("missing_image", {"b": "image 'b' is missing"})
    assert own.counts() == {"unreadable_image": (2, 2)}


def test_an_image_with_a_warning_is_counted_once_with_its_first_record(split):
    own = split(equal_images="warning").add("a cat", "a", "b").add("a dog", "c", "a")
    own.preferences.report_images("equal_images", {"a": "image 'a' is like 'z'"})
    assert own.counts() == {"equal_images": (1, 0)}
    assert (
        own.findings.summary()["rules"]["equal_images"]["first"]
        == "some.json: record 0: image 'a' is like 'z'"
    )
    assert len(own.pairs()) == 2


def test_records_with_one_image_are_captions_and_records_without_images_are_prompts(split):
    own = split().add("a cat", "a").add("a dog").add("a cat", "a").add("a dog").add("a cat", "b")
    assert own.preferences.captions() == [("train", "a cat", "train/a"), ("train", "a cat", "train/b")]
    assert own.preferences.prompts() == ["a cat", "a dog"]
    assert own.preferences.images() == ["a", "b"]
    assert own.counts() == {"doubled_record": (2, 2)}


def entry(prompt, record=0, style="photo"):
    return BenchmarkPrompt(f"{style}.json", record, prompt, style)


def test_a_benchmark_prompt_in_two_lists_is_kept_once_and_named(split):
    own = split()
    entries = [entry("a cat", 0, "anime"), entry("a road", 0), entry("A\u200b  cat", 1)]
    kept = list(benchmark_prompts(entries, own.preferences, own.findings))
    assert [(one.prompt, one.style) for one in kept] == [("a cat", "anime"), ("a road", "photo")]
    assert own.counts() == {"doubled_benchmark_prompt": (1, 1)}
    assert own.set_aside()[0][2].endswith("is also in anime.json as 'a cat' (record 0), which is kept")


@pytest.mark.parametrize(
    "spelling", ["a caf\u00e9", "A Caf\u00e9", "a  cafe\u0301 ", "A\nCAF\u00c9", "a caf\u00e9\u2060"]
)
def test_a_benchmark_prompt_that_is_trained_on_in_any_spelling_ends_the_run_or_is_set_aside(
    split, ingest_settings, spelling
):
    own = split().add("a dog", "a", "b").add(spelling, "a", "b")
    kept = list(benchmark_prompts([entry("a caf\u00e9"), entry("a road", 1)], own.preferences, own.findings))
    assert [one.prompt for one in kept] == ["a road"]
    assert own.counts() == {"trained_benchmark_prompt": (1, 1)}
    stops = Split(ingest_settings(on_bad_record="stop"))
    stops.add("a dog", "a", "b").add(spelling, "a", "b")
    spelled = "" if spelling == "a caf\u00e9" else re.escape(f" as {spelling!r}")
    expected = rf"is also in some\.json{spelled} \(record 1\): train and benchmark must be disjoint"
    with pytest.raises(DataError, match=rf"^photo\.json: record 0: prompt 'a café' {expected}"):
        list(benchmark_prompts([entry("a caf\u00e9")], stops.preferences, stops.findings))
