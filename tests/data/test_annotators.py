import pytest

from srpo_core.data.annotators import annotator_agreement
from srpo_core.data.choices import Choice
from srpo_core.data.intervals import share_interval


def choice(prompt, ranks, *annotations):
    return Choice(
        "test.json", 0, prompt, tuple(f"{number}.png" for number in range(len(ranks))), ranks, annotations
    )


def test_annotators_are_compared_with_the_rank_and_with_each_other():
    found = annotator_agreement(
        [
            choice(
                "a cat", (1, 2, 3), (1, 2, 3), (2, 1, 3)
            ),  # 3 of 3 and 2 of 3 with the rank; 2 of 3 between
            choice("a dog", (1, 2), (1, 2), (2, 1), (1, 1)),  # 1 of 2: the tie says nothing; 0 of 1 between
            choice("a hen", (1, 1), (1, 2)),  # the rank is a tie
            choice("an owl", (1, 2)),
        ]
    )
    assert (found.records, found.annotations) == (3, 6)
    assert (found.with_rank.share, found.with_rank.count) == (6 / 8, 8)
    assert (found.between.share, found.between.count) == (2 / 4, 4)


def test_the_interval_of_annotators_counts_a_prompt_as_one_group():
    many = [
        choice(f"prompt {number}", (1, 2), *[(1, 2) if number % 4 else (2, 1)] * 25) for number in range(20)
    ]
    share = annotator_agreement(many).with_rank
    assert share.share == 0.75
    assert (share.low, share.high) == share_interval(
        [bool(number % 4) for number in range(20) for _ in range(25)],
        [f"prompt {number}" for number in range(20) for _ in range(25)],
    )
    # 500 independent comparisons would give 0.71 to 0.79
    assert share.low < 0.6
    assert share.high > 0.85


@pytest.mark.parametrize("choices", [[], [choice("a cat", (1, 2))], [choice("a cat", (1, 1), (1, 1))]])
def test_without_comparisons_there_is_no_share(choices):
    found = annotator_agreement(choices)
    assert found.with_rank is None
    assert found.between is None
