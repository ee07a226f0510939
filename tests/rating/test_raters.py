"""Raters are measured by repeats, checks, sides and speed; those who fail are reported and count less, and none is dropped."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_people import People, checks, paired_answers, rating, repeats

from srpo_core.rating.raters import LEAST_WEIGHT, rate_raters, skill, weights


def task_of(lazy: bool, seed: int, *, prompts: int = 40, side: float | None = None, fast: bool = False):
    """Answers of four careful raters, and of `r0`, who is lazy, or prefers the left side, or is fast."""
    generator = np.random.default_rng(seed)
    answers = paired_answers(People().values(5, prompts, generator), generator)
    seconds = 0.5 if fast else 4.0
    changed = [one for one in answers if one.rater != "r0"]
    for one in (one for one in answers if one.rater == "r0"):
        answer = str(generator.choice(["first", "second"])) if lazy else one.answer
        if side is not None and generator.random() < side:
            answer = "first" if one.first_on_left else "second"
        changed.append(replace(one, answer=answer, seconds=seconds))
    for number in range(5):
        name = f"r{number}"
        own = [one for one in changed if one.rater == name]
        is_lazy = lazy and number == 0
        changed += checks(name, 12, 0.5 if is_lazy else 0.97, generator)
        changed += repeats(own, 8, 0.4 if is_lazy else 0.9, generator)
    return changed


def test_most_lazy_raters_are_reported_and_count_little_while_careful_ones_are_left_alone():
    found, careful = 0, 0
    for seed in range(40):
        raters = rate_raters(task_of(True, seed))
        reported = {name for name, rater in raters.items() if any("obvious" in why for why in rater.reasons)}
        found += "r0" in reported
        careful += len(reported - {"r0"})
        assert raters["r0"].weight < 0.8
        assert min(raters[f"r{n}"].weight for n in range(1, 5)) > raters["r0"].weight
    assert found / 40 >= 0.85  # planned: .93
    assert careful / 160 <= 0.02


def test_a_rater_with_a_side_is_found_by_the_sides_alone():
    raters = rate_raters(task_of(False, 1, side=0.7))
    (why,) = raters["r0"].reasons
    assert why.startswith("the left side in ")
    assert raters["r0"].left > 0.75 * raters["r0"].sided
    assert not any(raters[f"r{n}"].reasons for n in range(1, 5))


def test_a_rater_who_answers_much_faster_than_the_others_is_reported():
    assert "0.5 s per answer, all raters 4.0 s" in rate_raters(task_of(False, 2, fast=True))["r0"].reasons


def test_a_rater_who_answers_repeats_at_random_is_compared_with_the_others():
    generator = np.random.default_rng(4)
    answers = paired_answers(People().values(4, 40, generator), generator)
    for name, same in (("r0", 0.2), ("r1", 0.9), ("r2", 0.9), ("r3", 0.9)):
        answers += repeats([one for one in answers if one.rater == name], 15, same, generator)
    raters = rate_raters(answers)
    (why,) = raters["r0"].reasons
    assert why.startswith("the same answer to ") and "of 15 repeated items, other raters to " in why
    assert not raters["r1"].reasons


def test_the_weight_follows_the_checks_and_is_never_zero():
    assert skill(0, 0, 0.5) == 1.0  # nothing is known
    assert skill(12, 12, 0.5) == 1.0
    assert skill(6, 12, 0.5) == pytest.approx(((6 + 4.5) / 17 - 0.5) / 0.4)
    assert skill(0, 12, 0.5) == LEAST_WEIGHT > 0
    falling = [skill(right, 12, 0.5) for right in range(13)]
    assert falling == sorted(falling)


def test_every_rater_is_in_the_result_and_one_who_answered_a_single_item_has_the_full_weight():
    raters = rate_raters([rating(rater="ada"), rating(rater="bob", kind="check", expected="first")])
    assert set(raters) == {"ada", "bob"}
    assert weights(raters)["ada"] == 1.0
    assert raters["bob"].checks == 1
    assert raters["bob"].checks_right == 0
    assert rate_raters([]) == {}
