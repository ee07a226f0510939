import pytest

from srpo_core.data.json_lists import DEEPEST, Unreadable, read_list
from srpo_core.errors import DataError


def values_of(write, text):
    return [value for _, value, _ in read_list(write("list.json", text) / "list.json")]


@pytest.mark.parametrize(
    ("text", "rule", "detail"),
    [
        ("[" * 100_000 + "]" * 100_000, "deep_nesting", "nested 100000 deep, at most 100"),
        ('{"a": ' * 5000 + "[]" + "}" * 5000, "deep_nesting", "nested 5001 deep"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "deep_nesting", f"nested {DEEPEST + 1} deep"),
        ("9" * 5000, "bad_number", "more than 4,000 digits"),
        ('{"a": [1, -' + "9" * 5000 + ', "]}"]}', "bad_number", "more than 4,000 digits"),
        ('{"prompt": "a", "prompt": "b"}', "doubled_key", "key 'prompt' is there twice"),
        ('{"a": [{"rank": 1, "b": "\\"}", "rank": 1}]}', "doubled_key", "key 'rank' is there twice"),
    ],
)
def test_a_value_that_cannot_be_read_does_not_keep_the_next_from_being_read(write, text, rule, detail):
    first, unreadable, last = values_of(write, f'[1, {text}, {{"a": 2}}]')
    assert (first, last) == (1, {"a": 2})
    assert unreadable.rule == rule
    assert detail in unreadable.detail


def test_many_brackets_side_by_side_or_in_texts_are_not_deep(write):
    wide = '[{"a": [' + ", ".join(["[1]"] * 500) + '], "b": "' + "[" * 500 + '"}]'
    (value,) = values_of(write, wide)
    assert value["b"] == "[" * 500
    level = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert not any(isinstance(value, Unreadable) for value in values_of(write, f"[[{level}]]"))


@pytest.mark.parametrize(
    "text", ["[1, " + "[" * 100_000, '[{"a": ' + "[" * 5000 + "]", '[1, {"a": "' + "x" * 10_000]
)
def test_a_file_that_ends_within_a_value_is_refused_in_one_line(write, text):
    with pytest.raises(
        DataError, match=r"list\.json: record \d: broken JSON at line 1, column \d+: "
    ) as caught:
        values_of(write, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "list.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert [value for _, value, _ in read_list(tmp_path / "list.json")] == [1]


def test_a_directory_in_place_of_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "list.json").mkdir()
    with pytest.raises(DataError, match=r"list\.json: cannot be read: Is a directory"):
        next(read_list(tmp_path / "list.json"))
