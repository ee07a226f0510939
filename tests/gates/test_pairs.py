from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from srpo_core.errors import ArtifactError
from srpo_core.gates.pairs import count_wins, pair_up

SOURCE = Path("runs/evaluate/figures.parquet")


def row(model, prompt, seed, value, style="food", metric="quality"):
    return {"model": model, "prompt": prompt, "style": style, "seed": seed, "metric": metric, "value": value}


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


def test_rows_are_paired_by_prompt_and_seed_in_any_row_order():
    for rows in (ROWS, ROWS[::-1]):
        pairs = pair_up(table(rows), SOURCE)
        assert dict(zip(pairs.prompts, pairs.styles, strict=True)) == {"cat": "food", "pie": "sweet"}
        gained = pairs.aligned["quality"] - pairs.base["quality"]
        names = [pairs.prompts[index] for index in pairs.prompt_index]
        assert {(n, s): round(g, 9) for n, s, g in zip(names, pairs.seeds.tolist(), gained, strict=True)} == {
            ("cat", 0): 0.1,
            ("cat", 1): 0.4,
            ("pie", 0): 0.4,
        }
    assert pairs.champion is None


def test_pairs_keep_the_order_of_the_evaluation():
    pairs = pair_up(table(ROWS), SOURCE)
    assert pairs.prompts == ("cat", "pie")
    assert pairs.seeds.tolist() == [0, 1, 0]


def test_seeds_are_averaged_per_prompt():
    pairs = pair_up(table(ROWS), SOURCE)
    np.testing.assert_allclose(pairs.by_prompt(pairs.base["quality"]), [0.2, 0.5])


def test_spellings_of_one_prompt_are_one_cluster_of_the_bootstrap():
    spelled = [
        {**entry, "prompt": "  CAT", "value": entry["value"] + 1}
        for entry in ROWS
        if entry["prompt"] == "cat"
    ]
    pairs = pair_up(table([*ROWS, *spelled]), SOURCE)
    assert pairs.prompts == ("cat", "pie")
    assert len(pairs.seeds) == 5
    np.testing.assert_allclose(pairs.by_prompt(pairs.base["quality"]), [0.7, 0.5])


def test_metrics_keep_their_order_and_the_champion_is_paired_too():
    champion = [{**entry, "model": "champion", "value": 1.0} for entry in ROWS[:3]]
    rows = [*ROWS, *champion]
    both = rows + [{**entry, "metric": "colour", "value": entry["value"] + 1} for entry in rows]
    pairs = pair_up(table(both), SOURCE)
    assert pairs.metrics == ["quality", "colour"]
    np.testing.assert_allclose(pairs.aligned["colour"], pairs.aligned["quality"] + 1)
    np.testing.assert_allclose(pairs.champion["quality"], 1.0)


def test_a_missing_figure_becomes_nan():
    rows = [{**ROWS[0], "value": None}, *ROWS[1:]]
    assert np.isnan(pair_up(table(rows), SOURCE).base["quality"][0])


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (ROWS[:-1], "1 rows of model aligned, metric quality without a partner, for instance prompt 'cat' seed 0"),
        ([*ROWS, ROWS[0]], "repeats prompt 'cat', seed 0 of model base, metric quality"),
        ([*ROWS, row("rival", "cat", 0, 0.1)], "has rows of model 'rival', known are base, aligned, champion"),
        ([*ROWS, *({**entry, "metric": "x"} for entry in ROWS[:3])],
         "has metric x of only one of base and aligned"),
        (ROWS[:3], "has 0 rows of the aligned model"),
        ([*ROWS[:-1], {**ROWS[-1], "style": "sweet"}], "has two styles of prompt 'cat'"),
        ([{**entry, "value": str(entry["value"])} for entry in ROWS], "has string in the column value, which must hold numbers"),
        ([{**entry, "seed": entry["seed"] + 0.5} for entry in ROWS], "has double in the column seed, which must hold whole numbers"),
        ([*ROWS[:-1], {**ROWS[-1], "prompt": None}], "has 1 rows without prompt"),
        ([{"model": "base", "seed": 0}], "has no column prompt, style, metric, value"),
    ],
)  # fmt: skip
def test_the_error_says_why_a_table_cannot_be_paired(rows, fault):
    with pytest.raises(ArtifactError) as caught:
        pair_up(table(rows), SOURCE)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_table_is_refused():
    with pytest.raises(ArtifactError, match="has 0 rows of the base"):
        pair_up(table(ROWS).slice(0, 0), SOURCE)


def test_wins_losses_and_ties_are_counted_and_the_tie_limit_is_inclusive():
    ours, theirs = np.array([0.9, 0.1, 0.5, 0.5, np.nan]), np.array([0.2, 0.8, 0.5, 0.25, 0.5])
    assert count_wins(ours, theirs, tie=0.25) == (1, 1, 2)
    assert count_wins(ours, theirs, tie=0.0) == (2, 1, 1)
