"""The trade-off's intervals are paired by subject, and the chart shows them."""

from pathlib import Path

import pytest
import torch

from srpo_core.generation.images import MeasuredImage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trade_off(benchmark_named):
    return benchmark_named("trade_off")


def images(trade_off, values):
    """Return two images of each prompt with equal figures."""
    return [
        MeasuredImage(f"prompt {n}", "all", k, torch.zeros(3, 2, 2), dict.fromkeys(trade_off.METRICS, value))
        for n, value in enumerate(values)
        for k in range(2)
    ]


def test_a_loss_that_is_equal_for_all_subjects_has_an_interval_of_zero_width(trade_off):
    base = [0.1 * n for n in range(10)]
    found = trade_off.intervals(images(trade_off, base), images(trade_off, [value - 0.25 for value in base]))
    assert found["judge_top5_low"] == pytest.approx(-0.25)
    assert found["judge_top5_high"] == pytest.approx(-0.25)


def test_a_loss_in_one_of_ten_subjects_has_an_interval_that_includes_zero(trade_off):
    found = trade_off.intervals(images(trade_off, [1.0] * 10), images(trade_off, [1.0] * 9 + [0.0]))
    assert found["judge_top1_low"] < -0.1 <= found["judge_top1_high"] == 0


def test_the_chart_draws_an_interval_for_every_point_but_the_base(trade_off, tmp_path):
    ends = {
        f"{name}_{end}": value for name in trade_off.METRICS for end, value in (("low", -0.1), ("high", 0))
    }
    means = dict.fromkeys(trade_off.METRICS, 0.5)
    rows = [
        {"pair": "Ink over 3D", "run": "SRPO", "step": step, **means, **(ends if step else {})}
        for step in (0, 10, 20)
    ]
    trade_off.write_chart(rows, tmp_path / "chart.svg")
    generated = (tmp_path / "chart.svg").read_text()
    assert generated.count("stroke-opacity") == 2 * len(trade_off.CHARTED_FIGURES)
