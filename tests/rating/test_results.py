"""Results of simulated tasks: figures by hand, the truth within the intervals, and nothing before the planned end."""

import json
from dataclasses import replace

import numpy as np
import pytest
from simulated_people import People, checks, level_answers, paired_answers, rating

from srpo_core.errors import DataError
from srpo_core.rating.results import (
    ALL_STYLES,
    Progress,
    complete_raters,
    require_end,
    summarize,
    widening,
)


def test_a_tie_and_both_bad_count_half_and_are_shown():
    words = ["first", "first", "first", "second", "tie", "both_bad"]
    answers = [rating(item=f"i{n}", prompt=f"p{n}", answer=word) for n, word in enumerate(words)]
    (found,) = summarize(answers).win_rates
    assert (found.model, found.other, found.style) == ("base", "tiny/v3", ALL_STYLES)
    assert found.figure.value == pytest.approx(4 / 6)
    assert found.counts == {"first": 3, "second": 1, "tie": 1, "both_bad": 1}
    assert (found.figure.answers, found.figure.raters, found.figure.prompts) == (6, 1, 6)
    assert np.isnan(found.figure.low)  # one rater says nothing about others


def test_pairs_in_both_orders_are_one_win_rate():
    one = rating(prompt="p0", answer="first")
    other = rating(item="i1", prompt="p1", first="tiny/v3", second="base", answer="second")
    (found,) = summarize([one, other]).win_rates
    assert found.figure.value == 1.0
    assert found.counts["first"] == 2
    (turned,) = summarize([one, other], models=["tiny/v3", "base"]).win_rates
    assert (turned.model, turned.figure.value, turned.counts["second"]) == ("tiny/v3", 0.0, 2)


def test_repeats_and_checks_are_no_evidence_about_models():
    generator = np.random.default_rng(0)
    answers = paired_answers(People().values(3, 20, generator), generator)
    more = [*answers, *checks("r0", 12, 1.0, generator)]
    assert summarize(more).win_rates == summarize(answers).win_rates


def test_a_lazy_rater_counts_less_and_is_still_there():
    generator = np.random.default_rng(2)
    values = np.ones((3, 30))
    values[0] = 0.0
    answers = paired_answers(values, generator)
    for name, right in (("r0", 0.4), ("r1", 1.0), ("r2", 1.0)):
        answers += checks(name, 12, right, generator)
    results = summarize(answers)
    weight = results.raters["r0"].weight
    assert weight < 0.5
    by_hand = weight / (2 + weight)
    overall = results.win_rates[0]
    assert 1 - overall.figure.value == pytest.approx(1 - by_hand)
    assert overall.figure.raters == 3
    assert results.raters["r0"].reasons
    written = json.dumps(results.as_json(), allow_nan=False)
    assert "r0" not in written  # no names of raters in what is published
    assert len(json.loads(written)["raters"]) == 3


def test_the_truth_is_within_the_interval_and_styles_are_apart():
    people, generator, covered = People(), np.random.default_rng(8), 0
    for _ in range(40):
        results = summarize(paired_answers(people.values(4, 30, generator), generator))
        assert [one.style for one in results.win_rates] == [ALL_STYLES, "anime", "photo"]
        overall = results.win_rates[0].figure
        covered += overall.low <= 1 - people.win_rate <= overall.high
        assert sum(one.figure.answers for one in results.win_rates[1:]) == overall.answers == 120
    assert covered >= 36


def test_the_shares_of_excellent_images_and_their_difference_are_those_of_the_answers():
    generator = np.random.default_rng(2)
    results = summarize(level_answers(4, 40, {"new": 0.4, "base": 0.1}, generator), models=["new", "base"])
    overall = [one for one in results.excellent if (one.dimension, one.style) == ("realism", ALL_STYLES)]
    new, base, difference = overall
    assert (new.model, base.model) == ("new", "base")
    assert (difference.model, difference.other) == ("new", "base")
    assert difference.figure.value == pytest.approx(new.figure.value - base.figure.value)
    assert new.figure.low < 0.4 < new.figure.high
    assert base.figure.low < 0.1 < base.figure.high
    assert difference.figure.low < 0.3 < difference.figure.high
    assert difference.figure.answers == 160
    assert {one.dimension for one in results.excellent} == {
        "text_alignment",
        "realism",
        "aesthetics",
        "overall",
    }
    assert set(results.agreement) == {"text_alignment", "realism", "aesthetics", "overall"}


def test_a_difference_uses_only_images_that_a_rater_saw_of_both_models():
    answers = level_answers(2, 10, {"new": 1.0, "base": 0.0}, np.random.default_rng(0))
    some = [one for one in answers if not (one.rater == "r1" and one.first == "base")]
    (difference,) = [
        one
        for one in summarize(some, models=["new", "base"]).excellent
        if one.other and (one.dimension, one.style) == ("overall", ALL_STYLES)
    ]
    assert (difference.figure.value, difference.figure.answers) == (1.0, 10)


def test_three_models_have_strengths_and_models_apart_say_why_there_are_none():
    generator = np.random.default_rng(3)
    answers = [
        one
        for first, second, gain in (("base", "a", 0.6), ("base", "b", 1.2), ("a", "b", 0.6))
        for one in paired_answers(
            People(gain=gain).values(3, 20, generator), generator, first=first, second=second
        )
    ]
    results = summarize(answers)
    assert [one.model for one in results.strengths] == ["b", "a", "base"]
    assert len([one for one in results.win_rates if one.style == ALL_STYLES]) == 3
    apart = [one for one in answers if {one.first, one.second} == {"base", "a"}]
    apart += [replace(one, first="c", second="d", item=f"{one.item}'") for one in apart]
    assert summarize(apart).strengths == []
    assert "were never compared with" in summarize(apart).no_strengths


def test_nobody_sees_results_before_the_planned_end_unless_with_an_interval_for_any_time():
    progress = Progress(items=20, raters=3, complete=2)
    with pytest.raises(DataError, match="2 of 3 planned raters have answered all 20 items") as refusal:
        require_end(progress, early=False)
    assert "--early" in str(refusal.value)
    require_end(progress, early=True)
    require_end(replace(progress, complete=3), early=False)


def test_intervals_are_wider_before_the_planned_end_and_after_anybody_looked():
    generator = np.random.default_rng(5)
    answers = paired_answers(People().values(3, 20, generator), generator)
    assert complete_raters(answers, 20) == 3
    assert complete_raters(answers, 21) == 0
    assert complete_raters([], 1) == 0
    ended = Progress(items=20, raters=3, complete=3)
    assert widening(answers, ended, confidence=0.95) == 1.0
    peeked = widening(answers, replace(ended, looked_early=True), confidence=0.95)
    half = widening(answers[:30], replace(ended, complete=1), confidence=0.95)
    assert 1.0 < peeked < half
    narrow, wide = (summarize(answers, widened=by).win_rates[0].figure for by in (1.0, peeked))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_answers_of_two_protocols_or_none_are_refused():
    levels = level_answers(1, 1, {"base": 0.0}, np.random.default_rng(0))
    with pytest.raises(DataError, match="levels and paired"):
        summarize([rating(), *levels])
    with pytest.raises(DataError, match="no answer to a plain item"):
        summarize([rating(kind="check", expected="first")])
