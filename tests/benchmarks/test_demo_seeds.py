"""The table of the demo's seeds, from a run's files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_core.artifacts import DECISION, FIGURES, SELECTION


@pytest.fixture(scope="module")
def demo_seeds(benchmark_named):
    return benchmark_named("demo_seeds")


def rule(name, *, verdict="holds", compare="difference", value=0.2):
    return {
        "name": name,
        "verdict": verdict,
        "compare": compare,
        "tie": 0.05,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
    }


def write_run(work, *, refused=(), gains=(0.5, 0.5, 0.0, -0.5)):
    """Write what the stages leave behind: a decision, a selection, and figures of four images."""
    for path in (DECISION, FIGURES, SELECTION):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
    names = (
        "style_gained",
        "style_wins",
        "subject_not_traded",
        "diversity_kept",
        "contrast_kept",
        "detail_kept",
    )
    rules = [rule(name, verdict="refuses" if name in refused else "holds") for name in names]
    (work / DECISION).write_text(json.dumps({"passed": not refused, "rules": rules}))
    (work / SELECTION).write_text('{"step": 20}')
    rows = [
        {
            "model": model,
            "prompt": f"prompt {n}",
            "style": "all",
            "seed": 0,
            "metric": "judge_wanted",
            "value": value,
        }
        for n, gain in enumerate(gains)
        for model, value in (("base", 0.5), ("aligned", 0.5 + gain))
    ]
    pq.write_table(pa.Table.from_pylist(rows), work / FIGURES)


def test_a_row_counts_the_images_that_change_by_more_than_a_tie(demo_seeds, tmp_path):
    write_run(tmp_path)
    row = demo_seeds.row_of(tmp_path, 7)
    assert row["images"] == (2, 1, 4)
    assert (row["seed"], row["step"], row["refused_by"]) == (7, 20, [])


def test_a_seed_is_refused_by_a_rule_or_by_the_formats(demo_seeds, tmp_path):
    write_run(tmp_path, refused=["contrast_kept"])
    assert demo_seeds.row_of(tmp_path, 7)["refused_by"] == ["contrast_kept"]
    write_run(tmp_path)
    (tmp_path / "runs/quantize.done").write_text("3")
    assert demo_seeds.row_of(tmp_path, 7)["refused_by"] == ["quantize"]


def test_the_table_has_a_line_for_each_seed(demo_seeds, tmp_path):
    write_run(tmp_path, refused=["contrast_kept"])
    head, _, line = demo_seeds.table([demo_seeds.row_of(tmp_path, 7)])
    assert line.startswith("| 7 | 20 | refused: `contrast_kept` | 2, 1 of 4 | +0.200 (+0.100 to +0.300) |")
    assert head.count("|") == line.count("|")
