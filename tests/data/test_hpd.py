import re

import pytest

from srpo_core.data.hpd import read_benchmark, read_choices
from srpo_core.data.json_lists import read_list
from srpo_core.errors import DataError


@pytest.fixture
def refusal(findings):
    """Return a function that reads a split and returns the error without the directory."""

    def read(source, split):
        return refused(source, split, findings)

    return read


def refused(source, split, findings):
    with pytest.raises(DataError) as caught:
        list(read_choices(source, split, findings))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{source}/")


def test_a_train_record_prefers_the_image_marked_1(write, train_record, findings):
    source = write("train.json", [train_record, train_record | {"human_preference": [1, 0]}])
    first, second = read_choices(source, "train", findings)
    assert (first.record, first.prompt) == (0, "a red apple")
    assert list(first.pairs()) == [("apple.png", "pear.png")]
    assert list(second.pairs()) == [("pear.png", "apple.png")]


def test_a_test_record_gives_a_pair_for_every_two_images_of_different_rank(write, test_record, findings):
    four = test_record | {
        "image_path": ["a", "b", "c", "d"],
        "rank": [3, 1, 2, 2],
        "raw_annotations": [{"rank": [3, 1, 2, 2], "user_hash": "someone"}],
    }
    tied, ranked = read_choices(write("test.json", [test_record, four]), "test", findings)
    assert list(tied.pairs()) == [("cat.png", "dog.png"), ("cat.png", "cow.png")]
    assert list(ranked.pairs()) == [("b", "c"), ("b", "d"), ("b", "a"), ("c", "a"), ("d", "a")]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"human_preference": [1, 1]}, "human_preference: must be [1, 0] or [0, 1], found [1, 1]"),
        ({"human_preference": [1]}, "human_preference: must be [1, 0] or [0, 1], found [1]"),
        ({"human_preference": [True, False]}, "human_preference: must contain numbers, found True"),
        ({"human_preference": ["1", "0"]}, "human_preference: must contain numbers, found '1'"),
        ({"human_preference": 1}, "human_preference: must be a list, not int"),
        ({"prompt": "  \n"}, "prompt: is empty"),
        ({"prompt": None}, "prompt: must be a text, not NoneType"),
        ({"prompt": "half \ud83d"}, "prompt: contains half of a surrogate pair: 'half \\ud83d'"),
        ({"file_path": ["a"]}, "file_path: exactly two images are required, found 1"),
        ({"file_path": ["a", "b", "c"]}, "file_path: exactly two images are required, found 3"),
        ({"file_path": ["a", 7]}, "file_path: must be a text, not int"),
        ({"file_path": ["a", "a"]}, "file_path: the images must differ from each other, found ['a', 'a']"),
        ({"file_path": ["a", "../b"]}, "file_path: '../b' is not a plain relative path"),
        ({"file_path": ["a", "/b"]}, "file_path: '/b' is not a plain relative path"),
    ],
)
def test_the_error_for_an_invalid_train_record_names_the_record_and_the_rule(
    write, train_record, change, rule, refusal
):
    source = write("train.json", [train_record, train_record | change])
    assert refusal(source, "train") == f"train.json: record 1: {rule}"


@pytest.mark.parametrize("key", ["prompt", "file_path", "human_preference"])
def test_the_error_names_a_missing_key(write, train_record, key, refusal):
    del train_record[key]
    found = ", ".join(sorted(train_record))
    source = write("train.json", [train_record])
    assert refusal(source, "train") == f"train.json: record 0: key {key!r} is missing, found {found}"


def test_a_record_must_be_an_object(write, refusal):
    assert refusal(write("train.json", [3]), "train") == "train.json: record 0: must be an object, not int"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"rank": [1, 2]}, "rank: 2 ranks for 3 images in image_path"),
        ({"rank": [1, 2, None]}, "rank: must contain numbers, found None"),
        ({"rank": [1, 2, float("nan")]}, "rank: must contain numbers, found nan"),
        ({"raw_annotations": [{"rank": [1]}]}, "raw_annotations: 1 ranks for 3 images in image_path"),
        ({"raw_annotations": [{}]}, "key 'rank' is missing, found no key"),
        ({"image_path": ["a"], "rank": [1]}, "image_path: at least two images are required, found 1"),
    ],
)
def test_the_error_for_an_invalid_test_record_names_the_record_and_the_rule(
    write, test_record, change, rule, refusal
):
    source = write("test.json", [test_record | change])
    assert refusal(source, "test") == f"test.json: record 0: {rule}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n {"prompt": "x"},\n {"prompt" "y"}\n]', "record 1: broken JSON at line 3, column 12"),
        ('[\n {"prompt": "x"}\n {"prompt": "y"}\n]', "record 0: broken JSON at line 3, column 2"),
        ('[{"prompt": "x"},\n]', "record 1: broken JSON at line 2, column 1"),
        ('[{"prompt": "x"}', "record 0: broken JSON at line 1, column 17"),
        ('[{"prompt": "x', "record 0: broken JSON at line 1, column 13"),
        ('{"prompt": "x"}', "must contain a JSON list, but begins with"),
        ("", "must contain a JSON list, but begins with ''"),
        ("[1, 2] 3", "nothing may follow the JSON list, found '3'"),
    ],
)
def test_the_error_for_broken_json_names_line_and_column(write, text, message):
    source = write("train.json", text)
    with pytest.raises(DataError, match=re.escape(f"{source}/train.json: {message}")):
        list(read_list(source / "train.json"))


def test_a_list_is_read_value_by_value(write):
    source = write("list.json", ' [ 1,"a,]" ,\n{"b": [2]} ] ')
    assert list(read_list(source / "list.json")) == [
        (0, 1, "1"),
        (1, "a,]", '"a,]"'),
        (2, {"b": [2]}, '{"b": [2]}'),
    ]
    assert list(read_list(write("list.json", "[ ]") / "list.json")) == []


def test_records_before_a_broken_one_are_read_first(write, train_record, findings):
    source = write("train.json", [train_record, {}])
    assert next(read_choices(source, "train", findings)).record == 0


def test_the_error_for_a_file_that_is_not_utf8_names_the_byte(tmp_path, refusal):
    (tmp_path / "train.json").write_bytes(b'["\xff"]')
    assert refusal(tmp_path, "train") == "train.json: not UTF-8 at byte 2"


def test_the_error_for_a_missing_file_says_what_the_source_must_contain(tmp_path, refusal):
    assert refusal(tmp_path, "train").startswith("train.json is missing: ingest.source must name")


def test_benchmark_prompts_have_the_name_of_their_list(write, findings):
    write("benchmark/photo.json", ["a road", "a cat"])
    source = write("benchmark/anime.json", ["a castle"])
    assert [(entry.prompt, entry.style, entry.record) for entry in read_benchmark(source, findings)] == [
        ("a castle", "anime", 0),
        ("a road", "photo", 0),
        ("a cat", "photo", 1),
    ]


def test_a_source_without_benchmark_lists_is_refused(write, findings):
    with pytest.raises(DataError, match="benchmark contains no list of prompts"):
        list(read_benchmark(write("train.json", []), findings))


@pytest.mark.parametrize(("entry", "rule"), [("", "is empty"), (1, "must be a text, not int")])
def test_a_benchmark_entry_must_be_a_text(write, entry, rule, findings):
    source = write("benchmark/photo.json", ["a road", entry])
    with pytest.raises(DataError, match=re.escape(f"photo.json: record 1: prompt: {rule}")):
        list(read_benchmark(source, findings))


def test_drawbench_is_not_a_style_of_the_benchmark(write, findings):
    """HPDv2 stores it next to the four lists of styles and scores it separately."""
    write("benchmark/photo.json", ["a cat"])
    source = write("benchmark/drawbench.json", ["a dog"])
    assert [(entry.prompt, entry.style) for entry in read_benchmark(source, findings)] == [("a cat", "photo")]


@pytest.mark.parametrize("name", ["./apple.png", "train/apple.png", "./train//apple.png"])
def test_the_name_of_an_image_may_begin_with_the_folder_of_the_split(write, train_record, name, findings):
    source = write("train.json", [train_record | {"file_path": ["pear.png", name]}])
    choices = read_choices(source, "train", findings)
    assert [choice.images for choice in choices] == [("pear.png", "apple.png")]


def test_two_spellings_of_one_image_are_no_pair(write, train_record, refusal):
    same = train_record | {"file_path": ["apple.png", "./train/apple.png"]}
    assert "the images must differ from each other" in refusal(write("train.json", [same]), "train")
