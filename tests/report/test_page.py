from pathlib import Path

import pyarrow as pa
import pytest

from srpo_core.gates.pairs import pair_up
from srpo_core.report.numbers import capitalized
from srpo_core.report.page import find_extremes, metric_changes


def pairs(styles, aligned):
    rows = [
        {
            "model": model,
            "prompt": f"p{number}",
            "style": style,
            "seed": 0,
            "metric": "quality",
            "value": figure,
        }
        for model in ("base", "aligned")
        for number, style in enumerate(styles)
        for figure in [0.5 if model == "base" else aligned[number]]
    ]
    return pair_up(pa.Table.from_pylist(rows), Path("images.parquet"))


def test_a_change_is_after_minus_before_and_each_list_has_its_own_means():
    [change] = metric_changes(pairs(["food", "food", "animals"], [0.6, 0.8, 0.2]), {"quality": "how good"})
    assert change["note"] == "how good"
    assert change["before"] == pytest.approx(0.5)
    assert change["after"] == pytest.approx(1.6 / 3)
    assert change["difference"] == pytest.approx(0.1 / 3)
    assert change["by_list"] == {
        "animals": pytest.approx((0.5, 0.2)),
        "food": pytest.approx((0.5, 0.7)),
    }


def test_a_single_list_gets_no_columns():
    assert metric_changes(pairs(["food", "food"], [0.6, 0.8]), {})[0]["by_list"] == {}


def test_a_nan_figure_becomes_none():
    [change] = metric_changes(pairs(["food", "animals"], [float("nan"), 0.8]), {})
    assert change["after"] is None
    assert change["by_list"]["food"] == (pytest.approx(0.5), None)
    assert change["by_list"]["animals"] == pytest.approx((0.5, 0.8))


def extremes(monkeypatch, changes, side, count=2):
    """Return the indices of the best and the worst prompts; figures change from 0.5 by `changes`."""
    monkeypatch.setattr("srpo_core.report.page.tiles_of", lambda pairs, source, indices, seeds: list(indices))
    given = pairs(["food"] * len(changes), [0.5 + change for change in changes])
    found = find_extremes(given, Path("images.parquet"), {"metric": "quality", "side": side}, count)
    return [index for index, _ in found.best], [index for index, _ in found.worst]


@pytest.mark.parametrize(
    ("side", "best", "worst"),
    [("at_least", [1, 3], [0, 2]), ("at_most", [0, 2], [1, 3]), ("within", [2, 3], [1, 0])],
)
def test_the_best_prompts_follow_the_direction_of_the_rule(monkeypatch, side, best, worst):
    assert extremes(monkeypatch, [-0.3, 0.4, 0.0, 0.1], side) == (best, worst)


def test_no_prompt_is_both_best_and_worst(monkeypatch):
    assert extremes(monkeypatch, [0.3, 0.1, 0.2], "at_least", count=4) == ([0, 2], [1])
    assert extremes(monkeypatch, [0.3], "at_least", count=4) == ([0], [])


def test_a_prompt_without_a_figure_is_neither_best_nor_worst(monkeypatch):
    assert extremes(monkeypatch, [0.3, float("nan"), -0.2], "at_least", count=4) == ([0], [2])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("every rule", "Every rule"),
        ("judge_wanted changed", "judge_wanted changed"),
        ("kept: so", "kept: so"),
        ("", ""),
    ],
)
def test_sentences_begin_with_a_capital_but_names_do_not(text, written):
    assert capitalized(text) == written
