"""The comparison of methods: its cells, and the tables and charts that are made of their rows."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compare(benchmark_named):
    return benchmark_named("compare")


@pytest.fixture(scope="module")
def tables(benchmark_named):
    return benchmark_named("compare_tables")


@pytest.fixture(scope="module")
def statistics(benchmark_named):
    return benchmark_named("compare_curves")


@pytest.fixture(scope="module")
def contenders(benchmark_named):
    return benchmark_named("contenders")


def curve(statistics, name, gains, *, cpu=10.0, seeds=3, prompts=8, lost=0.0):
    """A curve whose style rises by `gains` at steps 10, 20 …; each step of ten costs `cpu` seconds."""
    random = np.random.default_rng(5)
    base = random.uniform(0.3, 0.5, (seeds, prompts, len(statistics.METRICS)))
    figures = np.repeat(base[:, None], len(gains), 1)
    style, subject = (statistics.METRICS.index(one) for one in (statistics.STYLE, statistics.SUBJECT))
    for place, gain in enumerate(gains):
        figures[:, place, :, style] += gain
        figures[:, place, :, subject] -= lost * (place + 1)
    steps = 10 * (1 + np.arange(len(gains)))
    return statistics.Curve(name, tuple(range(seeds)), steps, cpu * (steps / 10), figures, base)


def test_every_method_has_settings_that_the_pipeline_accepts(compare, contenders):
    for one in contenders.CONTENDERS:
        for pair in contenders.PAIRS:
            settings = compare.Cell(one.name, pair, 1, steps=4, every=2).settings()
            assert settings.train.method == one.train["method"]
            assert settings.train.steps == 4 * one.length
            assert list(settings.control_words.wanted) == [contenders.PAIRS[pair][0]]


def test_cells_come_seed_by_seed_each_pair_with_a_base_of_its_own(compare, contenders):
    options = SimpleNamespace(
        methods=[contenders.REFERENCE, "ReFL"], pairs=["ink_over_3d"], seeds=None, steps=60, every=10
    )
    cells = [(cell.seed, cell.method) for cell in compare.cells_of(options)]
    assert cells[:3] == [(0, "base"), (0, contenders.REFERENCE), (0, "ReFL")]
    assert cells[-2:] == [(4, "base"), (4, contenders.REFERENCE)], "only the reference has five seeds"


def test_a_cell_with_other_settings_has_another_key(compare, contenders):
    cells = [
        compare.Cell(contenders.REFERENCE, pair, seed, steps, 2)
        for pair in contenders.PAIRS
        for seed in (0, 1)
        for steps in (4, 8)
    ]
    assert len({cell.key() for cell in cells}) == len(cells)
    assert len({cell.name for cell in cells}) == 4, "finished rows of other settings are replaced"


def test_an_equal_gain_of_every_image_has_an_interval_of_zero_width(statistics):
    found = curve(statistics, "a", [0.25])
    estimate = statistics.change("judge_wanted", found.at_step(10), found.base)
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([0.25] * 3)


def test_a_gain_of_one_seed_of_three_has_an_interval_that_includes_zero(statistics):
    found = curve(statistics, "a", [0.0])
    found.figures[0, 0, :, statistics.METRICS.index("judge_wanted")] += 0.3
    estimate = statistics.change("judge_wanted", found.at_step(10), found.base)
    assert estimate.value == pytest.approx(0.1)
    assert estimate.low <= 0 < estimate.high


def test_intervals_cover_the_truth_of_seeds_and_prompts_about_as_often_as_they_say(statistics):
    random, covered = np.random.default_rng(0), 0
    for _ in range(100):
        ours = 0.2 + random.normal(0, 0.05, (5, 1)) + random.normal(0, 0.1, (1, 40))
        estimate = statistics.difference(ours, np.zeros_like(ours))
        covered += estimate.low <= 0.2 <= estimate.high
    assert 80 <= covered <= 99, "five seeds are few, so it may be a little less than 95"


def test_diversity_is_compared_as_a_share_of_the_base(statistics):
    found = curve(statistics, "a", [0.0])
    figures = found.figures.copy()
    figures[..., statistics.METRICS.index("diversity")] *= 0.5
    half = statistics.change("diversity", figures[:, 0], found.base)
    assert [half.value, half.low, half.high] == pytest.approx([0.5] * 3)


def test_between_two_measurements_a_figure_is_interpolated_by_cpu_seconds(statistics):
    found = curve(statistics, "a", [0.1, 0.3])
    style = statistics.METRICS.index("judge_wanted")
    for seconds, gain in ((0, 0.0), (5, 0.05), (10, 0.1), (15, 0.2), (20, 0.3)):
        at = found.at_seconds(seconds)
        assert (at - found.base)[..., style] == pytest.approx(gain)
    assert found.at_seconds(20.5) is None, "nothing is extrapolated"


def test_gain_counts_up_to_the_last_checkpoint_that_keeps_the_subject(statistics):
    assert statistics.last_step_with_subject(curve(statistics, "a", [0.1, 0.2, 0.3], lost=0.02)) == 20
    assert statistics.last_step_with_subject(curve(statistics, "a", [0.1, 0.2], lost=0.06)) is None


def test_the_tables_have_a_row_for_each_method_and_say_which_training_was_too_short(tables, statistics):
    curves = [
        curve(statistics, tables.REFERENCE, [0.1, 0.2, 0.3]),
        curve(statistics, "cheap", [0.1, 0.1, 0.1], cpu=2),
    ]
    lines = list(tables.sections({"ink_over_3d": curves}, 30))
    rows = [line for line in lines if line.startswith(("| SRPO online", "| cheap"))]
    assert len(rows) == 8, "the reference is not compared with itself, and the paper has no cheap method"
    assert "+0.300 (+0.300 to +0.300)" in rows[0]
    assert rows[6] == "| cheap | 3 | 0.20 | -0.200 (-0.200 to -0.200) | needs 5 seeds |"
    assert "its training ends after 6 CPU s" in rows[3]


def test_changes_stand_beside_those_of_the_papers_table(tables, statistics):
    curves = [
        curve(statistics, tables.REFERENCE, [0.1, 0.2, 0.3]),
        curve(statistics, "ReFL", [0.0, 0.0, 0.1], cpu=5),
        curve(statistics, "not in the paper", [0.1, 0.1, 0.1]),
    ]
    titles, srpo, refl = tables.table_beside_paper(curves, 30)
    assert len(titles) == len(srpo) == len(refl)
    assert list(srpo[1:6]) == ["+0.300", "+0.000", "+0.000", "+0.000", "1.00"]
    assert list(srpo[6:]) == ["+24.1", "+0.042", "+0.000", "-0.013", "1.0"]
    assert list(refl[1:6]) == ["+0.100", "+0.000", "+0.000", "+0.000", "0.50"]
    assert list(refl[6:]) == ["-2.2", "+0.007", "+0.009", "-0.022", "3.0"]


def test_the_chart_draws_a_line_for_each_method_in_each_panel(statistics, benchmark_named):
    curves = [curve(statistics, "a < b", [0.1, 0.2]), curve(statistics, "c", [0.1, -0.2])]
    chart = benchmark_named("compare_chart")
    drawn = chart.draw_curves(curves, "ink_over_3d")
    assert drawn.count("<polyline") == 2 * len(chart.PANELS)
    assert "a &lt; b" in drawn
    assert "nan" not in drawn


def test_the_tables_replace_those_in_the_page_and_nothing_else(tables, tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.write_section(["", "| new |"], page)
    assert page.read_text() == f"before\n{tables.BEGIN}\n\n| new |\n\n{tables.END}\nafter\n"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="no place for the tables"):
        tables.write_section([], page)


@pytest.mark.nightly  # trains and measures: a minute
def test_a_comparison_that_is_repeated_trains_nothing_again(tmp_path):
    command = [
        *(sys.executable, str(ROOT / "benchmarks/compare.py"), "--methods", "SRPO online", "--pairs"),
        *("ink_over_3d", "--seeds", "1", "--steps", "2", "--every", "1", "--jobs", "1"),
        *("--work", str(tmp_path / "work"), "--rows", str(tmp_path / "rows.parquet")),
    ]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0 of 2 cells are finished" in first.stdout
    cells = {path.name: path.read_bytes() for path in (tmp_path / "work/cells").iterdir()}
    (tmp_path / "rows.parquet").unlink()
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 of 2 cells are finished" in second.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "work/cells").iterdir()} == cells
    shown = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/compare_tables.py"), "--step", "2"),
            *("--rows", str(tmp_path / "rows.parquet")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| SRPO online | 1 |" in shown.stdout
    assert json.dumps(sorted(cells)) == '["SRPO_online-ink_over_3d-0.parquet", "base-ink_over_3d-0.parquet"]'


def test_rows_of_a_method_that_is_compared_alone_replace_its_own_and_no_others(compare, tmp_path):
    import pyarrow.parquet as pq

    def write(names, style):
        cells = [compare.Cell(method, "ink_over_3d", seed, 4, 4) for method, seed in names]
        for cell in cells:
            row = dict.fromkeys(compare.METRICS, style) | {"step": 4, "prompt": 0, "cpu_seconds": 1.0}
            own = {"pair": cell.pair, "method": cell.method, "seed": cell.seed}
            path = tmp_path / f"work/cells/{cell.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            compare._write([own | row], path, "key")
        compare.write_rows(cells, tmp_path / "work", tmp_path / "rows.parquet")

    write([("base", 0), ("base", 1), ("a", 0), ("a", 1), ("b", 0)], 0.25)
    write([("base", 0), ("a", 0)], 0.5)
    table = pq.read_table(tmp_path / "rows.parquet")
    names = (table[name].to_pylist() for name in ("method", "seed", "judge_wanted"))
    assert sorted(zip(*names, strict=True)) == [
        ("a", 0, 0.5),
        ("b", 0, 0.25),
        ("base", 0, 0.5),
        ("base", 1, 0.25),
    ]
