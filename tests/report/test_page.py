from pathlib import Path

import pyarrow as pa
import pytest

from srpo_core.gates.pairs import pair_up
from srpo_core.report.page import _capital as capital
from srpo_core.report.page import metric_changes


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


def test_a_change_is_after_less_before_and_each_list_has_its_own_before_and_after():
    [change] = metric_changes(pairs(["food", "food", "animals"], [0.6, 0.8, 0.2]))
    assert change["before"] == pytest.approx(0.5)
    assert change["after"] == pytest.approx(1.6 / 3)
    assert change["difference"] == pytest.approx(0.1 / 3)
    assert change["by_list"] == {
        "animals": pytest.approx((0.5, 0.2)),
        "food": pytest.approx((0.5, 0.7)),
    }


def test_one_list_needs_no_columns_of_its_own():
    assert metric_changes(pairs(["food", "food"], [0.6, 0.8]))[0]["by_list"] == {}


def test_a_figure_that_is_not_a_number_is_none():
    [change] = metric_changes(pairs(["food", "animals"], [float("nan"), 0.8]))
    assert change["after"] is None
    assert change["by_list"]["food"] == (pytest.approx(0.5), None)
    assert change["by_list"]["animals"] == pytest.approx((0.5, 0.8))


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
    assert capital(text) == written
