from collections import Counter
from pathlib import Path

import pytest

from srpo_core.algorithm.control_words import count_prompts, word_by_weight, word_in_turn

HPD = Path(__file__).parents[3] / "shared/hpd/hpdv2_test_prompts_400.txt"
REALISM = ("Natural-lighting", "Detail", "Detailed", "Real")
EQUAL = dict.fromkeys(REALISM, 1.0)
UNEQUAL = {"Real": 3.0, "Detailed": 2.0, "Photo": 1.0}


def test_words_of_equal_weight_alternate_as_in_the_reference():
    assert [word_in_turn(EQUAL, step) for step in range(1, 20)] == [
        REALISM[step % 4] for step in range(1, 20)
    ]


def test_words_chosen_in_turn_have_their_share_at_every_step():
    counts = Counter()
    for step in range(60):
        counts[word_in_turn(UNEQUAL, step)] += 1
        for word, weight in UNEQUAL.items():
            assert abs(counts[word] - (step + 1) * weight / 6) <= 1
    assert counts == {"Real": 30, "Detailed": 20, "Photo": 10}


def test_words_chosen_by_weight_are_drawn_in_proportion_to_their_weights():
    counts = Counter(word_by_weight(UNEQUAL, 0, "wanted", step) for step in range(3000))
    for word, weight in UNEQUAL.items():
        assert counts[word] / 3000 == pytest.approx(weight / 6, abs=0.03)


def test_a_draw_depends_only_on_seed_and_key_and_the_two_sides_are_independent():
    draws = [word_by_weight(EQUAL, 3, "wanted", step) for step in range(40)]
    assert draws == [word_by_weight(EQUAL, 3, "wanted", step) for step in range(40)]
    assert draws != [word_by_weight(EQUAL, 4, "wanted", step) for step in range(40)]
    assert draws != [word_by_weight(EQUAL, 3, "unwanted", step) for step in range(40)]


def test_a_single_word_is_always_chosen():
    assert {word_in_turn({"Ink": 0.1}, step) for step in range(5)} == {"Ink"}
    assert {word_by_weight({"Ink": 0.1}, 0, step) for step in range(5)} == {"Ink"}


@pytest.mark.parametrize(
    ("word", "prompt", "found"),
    [
        ("Oil", "an OIL painting", True),
        ("Oil", "a boiled egg", False),
        ("Real", "a realistic cat", False),
        ("Concept art", "Concept  Art, trending", True),
        ("Natural-lighting", "natural lighting, 35mm", True),
        ("Natural lighting", "soft natural-lighting.", True),
        ("Concept art", "an art concept", False),
        ("3D", "3d. cat", True),
        ("C++", "drawn in C++", True),
        ("墨", "墨 cat", True),
    ],
)
def test_only_whole_words_match(word, prompt, found):
    assert count_prompts(word, [prompt, "a penguin"]) == found


@pytest.mark.skipif(not HPD.is_file(), reason="HPDv2's test prompts are not at hand")
@pytest.mark.parametrize(
    ("word", "percent"),
    [
        ("Painting", 16.5),
        ("Detailed", 8.75),
        ("Anime", 5.75),
        ("Oil", 3.25),
        ("Concept art", 2.0),
        ("Realistic", 1.0),
        ("Flat", 0.25),
        ("Real", 0.0),
        ("Natural-lighting", 0.0),
    ],
)
def test_the_words_of_the_reference_have_the_measured_frequency_in_hpd(word, percent):
    prompts = HPD.read_text(encoding="utf-8").splitlines()
    assert 100 * count_prompts(word, prompts) / len(prompts) == percent
