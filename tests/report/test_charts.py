import re
import xml.etree.ElementTree as ET

import pytest

from srpo_core.report.charts import (
    BAR_WIDTH,
    BOTTOM,
    HEIGHT,
    TOP,
    WIDTH,
    Mark,
    Series,
    interval_bar,
    line_chart,
    nice_ticks,
)

RULE = {
    "name": "kept",
    "reason": "it holds",
    "compare": "difference",
    "value": -0.02,
    "low": -0.05,
    "high": 0.01,
    "margin": -0.1,
    "side": "at_least",
    "passed": True,
}


def elements(svg, name):
    """Return the attributes of every element of a class."""
    return [
        element.attrib for element in ET.fromstring(svg).iter() if name in element.get("class", "").split()
    ]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.62, 0.74, [0.6, 0.65, 0.7, 0.75]),
        (-0.03, 0.2, [-0.1, 0, 0.1, 0.2]),
        (0, 30, [0, 10, 20, 30]),
        (0.5, 0.5, [0.45, 0.5, 0.55]),
    ],
)
def test_ticks_are_round_numbers_that_span_the_data(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert found == pytest.approx(ticks)


def test_larger_values_are_higher_and_later_steps_are_further_right():
    svg = line_chart([Series("loss", [(0, 1.0), (5, 3.0), (10, 2.0)])], label="loss", x_label="step")
    first, second, third = [(float(dot["cx"]), float(dot["cy"])) for dot in elements(svg, "dot")]
    assert first[0] < second[0] < third[0]
    assert second[1] < third[1] < first[1]
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.11)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in (first, second, third))


def test_the_chosen_step_is_marked_with_its_value():
    series = [Series("judge", [(5, 0.4), (10, 0.6), (15, 0.9)])]
    svg = line_chart(series, label="judge", x_label="step", mark=Mark(10, "step 10:"))
    [chosen] = elements(svg, "chosen")
    assert chosen["cx"] == elements(svg, "dot")[1]["cx"]
    assert "step 10: 0.600" in svg


def label_and_dot(values, step):
    points = list(zip((0, 10, 20), values, strict=True))
    svg = line_chart([Series("judge", points)], label="", x_label="", mark=Mark(step, "step"))
    [words], [chosen] = elements(svg, "chosen-value"), elements(svg, "chosen")
    return words["text-anchor"], float(words["y"]), float(chosen["cy"])


def test_the_label_of_the_chosen_step_does_not_overlap_the_line():
    anchor, words, chosen = label_and_dot([0.1, 0.5, 0.9], 10)
    assert (anchor, words < chosen) == ("end", True)
    anchor, words, chosen = label_and_dot([0.9, 0.5, 0.1], 10)
    assert (anchor, words > chosen) == ("end", True)


@pytest.mark.parametrize("values", [[0.1, 0.5, 0.9], [0.9, 0.5, 0.1]])
@pytest.mark.parametrize("step", [0, 10, 20])
def test_the_label_of_the_chosen_step_stays_inside_the_plot(values, step):
    _, words, _ = label_and_dot(values, step)
    assert TOP <= words <= HEIGHT - BOTTOM


def test_an_unmeasured_step_has_a_line_but_no_value():
    svg = line_chart(
        [Series("judge", [(5, 0.4), (15, 0.9)])], label="", x_label="", mark=Mark(10, "step 10:")
    )
    assert len(elements(svg, "mark")) == 1
    assert elements(svg, "chosen") == []


def test_one_point_and_a_flat_line_can_be_drawn():
    for points in ([(5, 0.4)], [(0, 0.0), (1, 0.0)]):
        svg = line_chart([Series("flat", points)], label="", x_label="")
        assert "nan" not in svg
        assert len(elements(svg, "dot")) == len(points)


def test_text_is_escaped():
    svg = line_chart([Series("x", [(0, 1), (1, 2)])], label='"<b>', x_label="<i>&")
    assert ET.fromstring(svg).get("aria-label") == '"<b>'
    assert not re.search("<[bi]>", svg)


def test_the_shaded_side_is_where_the_rule_holds():
    least, most = interval_bar(RULE), interval_bar(RULE | {"side": "at_most"})
    threshold = float(elements(least, "threshold")[0]["x1"])
    [right], [left] = elements(least, "allowed"), elements(most, "allowed")
    assert (float(right["x"]), float(right["x"]) + float(right["width"])) == (threshold, BAR_WIDTH)
    assert (float(left["x"]), float(left["width"])) == (0.0, threshold)


def test_a_band_is_centred_on_the_value_of_equal_models():
    for compare, neutral in (("difference", 0.0), ("ratio", 1.0), ("win_rate", 0.5)):
        rule = RULE | {"compare": compare, "side": "within", "margin": 0.2}
        svg = interval_bar(rule | {key: neutral + RULE[key] for key in ("low", "value", "high")})
        left, right = (float(one["x1"]) for one in elements(svg, "threshold"))
        [zero], [allowed] = elements(svg, "zero"), elements(svg, "allowed")
        assert float(zero["x1"]) == pytest.approx((left + right) / 2, abs=0.1)
        assert float(allowed["x"]) == left
        assert float(allowed["width"]) == pytest.approx(right - left, abs=0.11)


def test_threshold_interval_mean_and_zero_are_in_the_order_of_their_values():
    svg = interval_bar(RULE)
    [interval], [value], [zero] = elements(svg, "interval"), elements(svg, "value"), elements(svg, "zero")
    ordered = [
        float(elements(svg, "threshold")[0]["x1"]),
        float(interval["x1"]),
        float(value["cx"]),
        float(zero["x1"]),
        float(interval["x2"]),
    ]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) == 5


def test_an_unmeasured_rule_shows_only_its_threshold():
    svg = interval_bar(RULE | {"value": None, "low": None, "high": None, "compare": "value"})
    assert len(elements(svg, "threshold")) == 1
    assert elements(svg, "value") + elements(svg, "interval") + elements(svg, "zero") == []
