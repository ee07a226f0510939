import io
from pathlib import Path

import pytest

from srpo_core.data.choices import Choice
from srpo_core.data.decoded_images import DecodedImage, _decode_one
from srpo_core.data.image_rules import ImageChecks
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import Findings
from srpo_core.errors import DataError

WHERE = Path("images")


@pytest.fixture
def checked(ingest_settings):
    """Return a function that makes the checks of two splits with records of two images each, and their findings."""

    def make(**rules):
        findings = Findings(ingest_settings(rules=rules, on_bad_record="quarantine"), io.StringIO())
        preferences = {split: Preferences(split, findings) for split in ("train", "test")}
        for split, own in preferences.items():
            for number in range(4):
                names = (f"{split}-{2 * number}", f"{split}-{2 * number + 1}")
                own.add(Choice(f"{split}.json", number, f"{split} {number}", names, (1, 2)))
        return ImageChecks(preferences, findings), findings

    return make


def decoded(name, size=(64, 64), digest=None, problem=""):
    return DecodedImage(name, size, (digest or name).encode(), problem)


def counts(findings):
    rules = findings.summary()["rules"]
    return {rule: (one["found"], one["set_aside"]) for rule, one in rules.items() if one["found"]}


def test_each_problem_of_an_image_is_reported_once_over_several_passes(checked):
    checks, findings = checked(equal_images="warning", trained_test_image="warning", small_image="warning")
    checks.decoded("train", decoded("train-0", digest="same"), WHERE)
    checks.decoded("train", decoded("train-3", digest="same"), WHERE)
    checks.decoded("train", decoded("train-4", size=(15, 300)), WHERE)
    checks.report()
    first = {"equal_images": (1, 0), "small_image": (1, 0)}
    assert counts(findings) == first
    checks.report()
    assert counts(findings) == first
    checks.decoded("test", decoded("test-2", digest="same"), WHERE)
    checks.decoded("train", decoded("train-7", digest="same"), WHERE)
    checks.report()
    assert counts(findings) == first | {"equal_images": (2, 0), "trained_test_image": (1, 0)}


def test_the_records_with_a_checked_image_are_counted_over_both_splits_of_a_file(ingest_settings):
    """Ten of the file's 100 records have an image that was checked, and two of these are bad."""
    settings = ingest_settings(on_bad_record="quarantine", max_bad_share=0.19)
    findings = Findings(settings, io.StringIO())
    preferences = {split: Preferences(split, findings) for split in ("train", "test")}
    for number in range(100):
        split = "test" if number % 10 == 0 else "train"
        names = (f"{number}-a", f"{number}-b")
        preferences[split].add(Choice("table.parquet", number, f"prompt {number}", names, (1, 2)))
    findings.count("table.parquet", 100)
    checks = ImageChecks(preferences, findings)
    for number in (0, 10, 20):
        checks.decoded("test", decoded(f"{number}-a"), WHERE)
        checks.decoded("test", decoded(f"{number}-b"), WHERE)
    checks.missing("train", [f"{number}-a" for number in (1, 2)], WHERE, 7)
    for number in range(3, 8):
        checks.decoded("train", decoded(f"{number}-a"), WHERE)
    checks.report()
    with pytest.raises(DataError, match=r"^table\.parquet: 2 of 10 records with a checked image are bad"):
        findings.require_few_bad()


def test_the_records_of_missing_and_unreadable_images_are_set_aside(checked):
    checks, findings = checked()
    checks.missing("train", ["train-1"], WHERE, 8)
    checks.decoded("test", decoded("test-5", size=None, problem="a GIF of 3 frames"), WHERE)
    checks.report()
    assert counts(findings) == {"missing_image": (1, 1), "unreadable_image": (1, 1)}
    firsts = {rule: one["first"] for rule, one in findings.summary()["rules"].items() if one["first"]}
    assert firsts["missing_image"].endswith("image 'train-1' is not in images (1 of 8 images are missing)")
    assert firsts["unreadable_image"].endswith(
        "image 'test-5' of images cannot be decoded: a GIF of 3 frames"
    )
    assert checks.size("train", "train-1") is None
    assert checks.size("test", "test-5") is None


def test_an_image_without_a_byte_is_a_missing_one(checked):
    checks, findings = checked()
    checks.decoded("train", _decode_one("train-2", b""), WHERE)
    checks.decoded("train", _decode_one("train-4", b"x"), WHERE)
    checks.report()
    assert counts(findings) == {"missing_image": (1, 1), "unreadable_image": (1, 1)}
    first = findings.summary()["rules"]["missing_image"]["first"]
    assert first == "train.json: record 1: image 'train-2' of images is empty: it has no byte"
    assert checks.size("train", "train-2") is None


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ((16, 128), None),
        ((1, 1), "small_image"),
        ((15, 64), "small_image"),
        ((16, 129), "elongated_image"),
        ((10_000, 1), "small_image"),
        ((10_000, 500), "elongated_image"),
    ],
)
def test_sides_and_their_ratio_have_limits(checked, size, rule):
    checks, findings = checked(small_image="critical", elongated_image="critical")
    checks.decoded("train", decoded("train-0", size=size), WHERE)
    checks.report()
    assert counts(findings) == ({} if rule is None else {rule: (1, 1)})
    assert checks.size("train", "train-0") == size


def test_images_that_were_checked_are_not_checked_again(checked):
    checks, _ = checked()
    checks.decoded("train", decoded("train-0"), WHERE)
    checks.missing("train", ["train-1"], WHERE, 2)
    assert checks.unchecked("train", ["train-0", "train-1", "train-2"]) == ["train-2"]
    assert checks.unchecked("test", ["train-0"]) == ["train-0"]
