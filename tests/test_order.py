from collections import Counter

from srpo_core.prompts import balanced_order

PROMPTS = [f"prompt {number}" for number in range(40)]
STYLES = ["anime"] * 20 + ["photo"] * 12 + ["paintings"] * 8


def test_every_beginning_of_the_order_has_each_style_as_often_as_all_prompts_up_to_one():
    order = balanced_order(PROMPTS, STYLES, seed=0)
    assert sorted(order) == list(range(40))
    for size in range(1, 41):
        found = Counter(STYLES[index] for index in order[:size])
        for style, count in Counter(STYLES).items():
            assert abs(found[style] - size * count / 40) <= 1


def test_the_order_is_the_same_for_the_same_prompts_and_another_for_another_seed():
    first = balanced_order(PROMPTS, STYLES, seed=0)
    assert first == balanced_order(PROMPTS, STYLES, seed=0)
    assert first != balanced_order(PROMPTS, STYLES, seed=1)
    # by the texts and not by their places
    back = balanced_order(PROMPTS[::-1], STYLES[::-1], seed=0)
    assert [PROMPTS[::-1][index] for index in back] == [PROMPTS[index] for index in first]
