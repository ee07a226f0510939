"""The style of a prompt is that of the data, or is assigned by its words."""

import json

import numpy as np
import pytest

from srpo_core.data.drift import style_shift
from srpo_core.data.prompt_styles import (
    ComparedStyles,
    StyleAssignment,
    StyledPrompts,
    compare_styles,
    read_styles,
)

WORDS = {
    "anime": ["manga", "girl", "sakura", "chibi", "kawaii", "ninja", "mecha"],
    "photo": ["camera", "lens", "bokeh", "portrait", "street", "light", "film"],
    "paintings": ["oil", "canvas", "impasto", "brush", "monet", "palette", "fresco"],
}
COMMON = ["a", "the", "of", "in", "with", "very", "big", "small", "red", "blue", "old", "young"]


def prompts_of(style, count, generator):
    """Make different prompts: two words that tell the style, and others."""
    made = set()
    while len(made) < count:
        words = [*generator.choice(WORDS[style], 2), *generator.choice(COMMON, 5)]
        made.add(" ".join(generator.permutation(words)))
    return sorted(made)


def listed(counts, seed):
    generator = np.random.default_rng(seed)
    return {
        prompt: style for style, count in counts.items() for prompt in prompts_of(style, count, generator)
    }


def test_prompts_without_a_style_are_assigned_that_of_their_words():
    assignment = StyleAssignment(listed({"anime": 80, "photo": 80, "paintings": 80}, 0))
    assert assignment.accuracy() > 0.95
    assert assignment.style("a mecha ninja in the old street") == "anime"
    assert assignment.style("foto mit bokehs") == "photo", "a part of a word is known"
    assert assignment.style("日本") == "other"


def test_a_prompt_of_the_lists_is_assigned_a_style_without_what_it_taught():
    """The words of each prompt are its own, so nothing but the prompt itself could tell its style."""
    own = {f"{letter * 5}": "photo" if number % 2 else "anime" for number, letter in enumerate("bcdfghjk")}
    assert StyleAssignment(own).accuracy() == 0.0
    assert StyleAssignment(own).style("bbbbb x") == "anime"


def test_assigned_styles_move_only_if_the_prompts_do():
    lists = listed({"anime": 100, "photo": 100, "paintings": 100}, 1)
    trained = listed({"anime": 300, "photo": 300, "paintings": 300}, 2)
    same, other = (
        listed(counts, 3)
        for counts in (
            {"anime": 100, "photo": 100, "paintings": 100},
            {"anime": 200, "photo": 60, "paintings": 40},
        )
    )
    production = StyledPrompts(frozenset({*lists, *trained}), lists)
    for prompts, moved in ((same, False), (other, True)):
        compared = compare_styles(production, StyledPrompts(frozenset(prompts), {}))
        assert isinstance(compared, ComparedStyles)
        assert compared.accuracy > 0.9
        assert style_shift(compared.before, compared.after, 0.95).beyond(0.1) == moved


def test_styles_that_every_prompt_has_are_compared_as_they_are():
    before = StyledPrompts(frozenset("ab"), {"a": "photo", "b": "anime", "c": "anime"})
    after = StyledPrompts(frozenset("de"), {"d": "photo", "e": "photo"})
    assert compare_styles(before, after) == ComparedStyles({"photo": 1, "anime": 1}, {"photo": 2})


def test_styles_that_words_do_not_tell_are_not_compared():
    generator = np.random.default_rng(0)
    names = {" ".join(generator.choice(COMMON, 6)): style for style in WORDS for _ in range(40)}
    why = compare_styles(StyledPrompts(frozenset(names), names), StyledPrompts(frozenset({"a red"}), {}))
    assert isinstance(why, str)
    assert "styles cannot be assigned by words" in why
    one = dict.fromkeys(names, "photo")
    why = compare_styles(StyledPrompts(frozenset(names), one), StyledPrompts(frozenset({"a red"}), {}))
    assert "the data name 1 styles" in why


def test_every_record_of_a_table_tells_its_style(tmp_path, ingest_settings):
    rows = [{"prompt": f"prompt {number}", "style": "photo" if number % 4 else ""} for number in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "prompt", "style": "style"}
    read = read_styles(ingest_settings(source=str(tmp_path), format="prompts", columns=columns), None)
    assert len(read.prompts) == 40
    assert read.counts() == {"photo": 30, "other": 10}
    assert not read.is_complete


def test_prompts_of_hpdv2_have_the_style_of_their_list(ingest_settings):
    read = read_styles(ingest_settings(), None)
    assert len(read.prompts) == 160
    assert read.styles["red apple"] == "food"
    assert set(read.counts()) == {"food", "nature", "objects", "other"}


def test_a_text_file_of_prompts_has_no_styles(tmp_path, ingest_settings):
    (tmp_path / "new.txt").write_text("A red  apple\na red apple\nanother one\n")
    read = read_styles(ingest_settings(source=str(tmp_path / "new.txt"), format="prompts"), None)
    assert read == StyledPrompts(frozenset({"a red apple", "another one"}), {})


@pytest.mark.parametrize("styles", [{}, {"x": "photo"}], ids=["none", "one"])
def test_one_style_is_nothing_to_compare(styles):
    one = StyledPrompts(frozenset({"x", "y"}), styles)
    assert isinstance(compare_styles(one, one), str)
