from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from srpo_core.errors import ArtifactError
from srpo_core.gates.pairs import pair_up

SOURCE = Path("runs/evaluate/images.parquet")


def row(model, prompt, seed, quality, style="food"):
    return {"model": model, "prompt": prompt, "style": style, "seed": seed, "png": b"", "quality": quality}


ROWS = [
    row("base", "cat", 0, 0.1),
    row("base", "cat", 1, 0.3),
    row("base", "pie", 0, 0.5, style="sweet"),
    row("aligned", "pie", 0, 0.9, style="sweet"),
    row("aligned", "cat", 1, 0.7),
    row("aligned", "cat", 0, 0.2),
]


def table(rows):
    return pa.Table.from_pylist(rows)


def test_rows_are_paired_by_prompt_and_seed_in_whatever_order_they_stand():
    pairs = pair_up(table(ROWS), SOURCE)
    assert pairs.prompts == ("cat", "pie")
    assert pairs.styles == ("food", "sweet")
    np.testing.assert_allclose(pairs.aligned["quality"] - pairs.base["quality"], [0.1, 0.4, 0.4])
    assert pairs.base_rows.tolist() == [0, 1, 2]
    assert pairs.aligned_rows.tolist() == [5, 4, 3]


def test_seeds_are_averaged_within_their_prompt():
    pairs = pair_up(table(ROWS), SOURCE)
    np.testing.assert_allclose(pairs.by_prompt(pairs.base["quality"]), [0.2, 0.5])


def test_only_numeric_columns_beside_the_keys_are_metrics():
    rows = [{**entry, "note": "text", "top1": True} for entry in ROWS]
    assert pair_up(table(rows), SOURCE).metrics == ["quality", "top1"]


def test_a_missing_figure_is_not_a_number():
    rows = [{**ROWS[0], "quality": None}, *ROWS[1:]]
    assert np.isnan(pair_up(table(rows), SOURCE).base["quality"][0])


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (ROWS[:-1], "1 without a partner, for instance prompt 'cat' seed 0"),
        ([*ROWS, ROWS[0]], "row 6 repeats model base, prompt 'cat', seed 0"),
        ([*ROWS, row("champion", "cat", 0, 0.1)], "row 6 is of model 'champion', known are base and aligned"),
        ([{"model": "base", "seed": 0}], "has no column prompt, style"),
    ],
)
def test_a_table_that_cannot_be_paired_is_named(rows, fault):
    with pytest.raises(ArtifactError) as caught:
        pair_up(table(rows), SOURCE)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_table_is_no_evidence():
    with pytest.raises(ArtifactError, match="has 0 rows of the base"):
        pair_up(table(ROWS).slice(0, 0), SOURCE)
