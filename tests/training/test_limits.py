import numpy as np
import pytest

from srpo_core.config import AlarmLimit, EarlyStop
from srpo_core.errors import ConfigError
from srpo_core.training.limits import hypotheses, weights

RANGES = {"share": (0.0, 1.0), "hue": (-1.0, 1.0), "spread": (0.0, 2.0)}
POOL = {
    "broken": np.array([[0.0, 0.0], [0.0, 1.0]]),
    "share": np.array([[1.0, 1.0], [0.5, 0.5]]),
    "hue": np.array([[0.1, 0.3], [-0.2, 0.0]]),
    "spread": np.array([[0.4], [0.6]]),
}


def limit(metric, side, margin, *, compare="difference", cap=None):
    return AlarmLimit(metric=metric, compare=compare, side=side, margin=margin, cap=cap)


def rule(**limits):
    return EarlyStop(
        alpha=0.05,
        num_prompts=2,
        seeds_per_prompt=2,
        num_inference_steps=1,
        base_seeds=2,
        max_broken=0.03,
        limits=limits,
    )


def only(one, **ranges):
    return hypotheses(rule(one=one), POOL, RANGES | ranges)[1:]


def test_the_limit_on_broken_images_is_added_to_the_share_of_the_base():
    (broken,) = hypotheses(rule(), POOL, RANGES)
    assert broken.bound.tolist() == [[0.28], [0.28]]
    assert broken.excess(np.array([[0.0, 1.0], [0.0, 0.0]])).ravel() == pytest.approx(
        [-0.28, 0.72, -0.28, -0.28]
    )
    assert broken.lowest == -0.28


def test_a_difference_is_to_the_mean_of_the_base_of_the_same_prompt():
    (low,) = only(limit("share", "at_least", -0.1))
    assert low.excess(np.array([[0.0, 1.0], [0.5, 0.3]])).ravel() == pytest.approx([0.9, -0.1, -0.1, 0.1])
    assert low.lowest == pytest.approx(-0.6)  # of the prompt whose figure can still rise by 0.5


def test_a_cap_limits_what_a_change_to_the_allowed_side_counts():
    (high,) = only(limit("hue", "at_most", 0.1, cap=0.2))
    assert high.excess(np.array([[0.6, -1.0], [0.0, -0.2]])).ravel() == pytest.approx([0.3, -0.3, 0.0, -0.2])
    assert high.lowest == pytest.approx(-0.3)


def test_within_tests_both_directions():
    high, low = only(limit("hue", "within", 0.1, cap=0.1))
    figures = np.array([[0.5, 0.5], [-0.1, -0.1]])
    assert (high.name, low.name) == ("one too high", "one too low")
    assert high.excess(figures).ravel() == pytest.approx([0.2, 0.2, -0.1, -0.1])
    assert low.excess(figures).ravel() == pytest.approx([-0.2, -0.2, -0.1, -0.1])


def test_a_ratio_compares_with_the_means_of_the_base_and_its_cap_is_a_multiple_of_their_mean():
    (low,) = only(limit("spread", "at_least", 0.3, compare="ratio", cap=1.0))
    assert low.bound.ravel() == pytest.approx([0.12, 0.18])
    assert low.excess(np.array([[0.0], [1.9]])).ravel() == pytest.approx([0.12, 0.18 - 0.5])
    assert low.lowest == pytest.approx(0.12 - 0.5)


def test_alpha_is_shared_equally_between_limits_and_between_the_directions_of_one():
    tested = hypotheses(rule(a=limit("hue", "within", 0.1), b=limit("share", "at_least", -0.1)), POOL, RANGES)
    assert weights([one.limit for one in tested]) == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])


def test_a_limit_that_the_base_itself_breaks_is_refused():
    with pytest.raises(
        ConfigError, match=r"^train\.early_stop\.limits\.one: the base's own images are 0\.1 bey"
    ):
        only(limit("share", "at_least", 0.1))


def test_a_metric_without_a_highest_figure_needs_a_cap():
    endless = (float("-inf"), float("inf"))
    with pytest.raises(ConfigError, match=r"limits\.one: .* its range has no end: set cap"):
        only(limit("hue", "at_least", -0.1), hue=endless)
    assert only(limit("hue", "at_least", -0.1, cap=0.1), hue=endless)[0].lowest == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"side": "within", "compare": "ratio"}, "within needs compare difference"),
        ({"side": "within", "margin": -0.1}, "a margin above 0"),
        ({"compare": "ratio", "margin": 0.0}, "compare ratio needs a margin above 0"),
    ],
)
def test_an_impossible_limit_is_refused(values, line):
    with pytest.raises(ValueError, match=line):
        AlarmLimit(
            **{"metric": "hue", "compare": "difference", "side": "at_least", "margin": 0.1, "cap": None}
            | values
        )
