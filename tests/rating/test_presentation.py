"""The order of items and sides: random, the same for the same rater, and without a trace of the models."""

from collections import Counter

import pytest
from rating_tasks import make_task

from srpo_core.rating.presentation import a_is_left, draw, ordered


def test_the_hash_has_the_published_values_of_its_parts():
    """FNV-1a of "" is its offset and of "a" 0xe40c292c; the mixing is MurmurHash3's fmix32 of these."""

    def fmix32(h):
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    assert draw("") == fmix32(0x811C9DC5)
    assert draw("a") == fmix32(0xE40C292C)
    assert draw("foobar") == fmix32(0xBF9CF968)


def test_raters_see_all_items_each_in_an_order_of_their_own_that_stays():
    task = make_task()
    orders = {rater: [item.id for item in ordered(task.items.values(), 0, rater)] for rater in ("ada", "bob")}
    assert set(orders["ada"]) == set(orders["bob"]) == set(task.items)
    assert orders["ada"] != orders["bob"]
    assert orders["ada"] == [item.id for item in ordered(reversed(task.items.values()), 0, "ada")]
    assert orders["ada"] != [item.id for item in ordered(task.items.values(), 1, "ada")]


def test_a_repeat_comes_a_third_of_the_items_or_more_after_what_it_repeats():
    task = make_task(prompts=40, repeats=8, checks=6)
    kinds = Counter(item.phase for item in task.items.values())
    for rater in ("ada", "bob", "eve"):
        places = {item.id: place for place, item in enumerate(ordered(task.items.values(), 0, rater))}
        for item in task.items.values():
            if item.repeats:
                assert places[item.id] - places[item.repeats] > kinds[1] >= 8


@pytest.mark.parametrize("rater", ["ada", "bob", "r1", "r2"])
def test_each_model_is_on_each_side_about_as_often(rater):
    """Of 160 fair draws, fewer than 56 or more than 104 are on one side once in 10,000 times; the draws are fixed."""
    task = make_task(prompts=40, repeats=0, checks=0, seed=3)
    ids = [f"{item}{number}" for item in task.items for number in range(4)]
    left = sum(a_is_left(3, rater, item) for item in ids)
    assert 56 <= left <= 104


def test_sides_of_one_rater_do_not_tell_those_of_another():
    ids = [f"{number:012x}" for number in range(400)]
    same = sum(a_is_left(0, "ada", item) == a_is_left(0, "bob", item) for item in ids)
    assert 160 <= same <= 240
