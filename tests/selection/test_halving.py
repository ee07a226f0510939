"""Checkpoints that are clearly worse are dropped early; the choice is recomputed from the scores."""

import pyarrow as pa
import pytest

from srpo_core.config import HalvingSettings, SelectSettings
from srpo_core.errors import ArtifactError
from srpo_core.selection.choice import choose, recomputed_selection, rounds_of, selection_of
from srpo_core.selection.halving import clearly_worse, compare_in_rounds, image_counts, round_sizes

HALVING = HalvingSettings(rounds=3, distance=1.0)
SELECT = SelectSettings(
    num_prompts=8, seeds_per_prompt=2, maximize="judge", keep={"subject": -0.1}, halving=HALVING
)
PROMPTS = [f"prompt {number}" for number in range(8)]
STYLES = ["a", "b"] * 4


def figures(judge, subject=1.0, spread=0.05, prompts=8):
    """Return the figures of two seeds of each prompt, whose means per prompt differ by twice the spread."""
    noise = [spread * (-1) ** prompt for prompt in range(prompts) for _ in range(2)]
    return {"judge": [judge + one for one in noise], "subject": [subject] * (2 * prompts)}


def opposite(found):
    """Return figures whose deviations have the other sign."""
    mean = sum(found["judge"]) / len(found["judge"])
    return found | {"judge": [2 * mean - one for one in found["judge"]]}


def compared(by_step):
    """Compare steps whose figures of all prompts are given, in rounds of 2, 4 and 8 prompts."""
    asked = []

    def measured(step, number):
        start, stop = [(0, 2), (2, 4), (4, 8)][number]
        asked.append((step, number))
        return {name: values[2 * start : 2 * stop] for name, values in by_step[step].items()}

    return compare_in_rounds([step for step in by_step if step], [2, 4, 8], measured, SELECT), asked


def test_each_round_doubles_the_prompts_and_the_last_has_all():
    assert round_sizes(24, HALVING) == [6, 12, 24]
    assert round_sizes(24, None) == [24]
    assert round_sizes(3, HALVING) == [2, 3]  # one prompt has no spread
    assert round_sizes(1, HALVING) == [1]


def test_a_checkpoint_of_the_worse_half_is_dropped_if_it_is_clearly_behind_the_best():
    base = figures(0.3)
    # differences to the best of -0.02 ± 0.1 per prompt: 0.5 standard errors over 8 prompts
    close = {0: base, 5: opposite(figures(0.48)), 10: figures(0.5)}
    assert clearly_worse(close, SELECT) == []
    assert clearly_worse(close | {5: opposite(figures(0.40))}, SELECT) == [5]
    lenient = SELECT.model_copy(update={"halving": HalvingSettings(rounds=3, distance=3.0)})
    assert clearly_worse(close | {5: opposite(figures(0.40))}, lenient) == []


def test_only_the_worse_half_is_dropped_and_the_best_never():
    found = {0: figures(0.3)} | {step: figures(step / 100) for step in (10, 20, 30, 40, 50)}
    assert clearly_worse(found, SELECT) == [10, 20]
    assert clearly_worse({0: figures(0.3), 10: figures(0.1)}, SELECT) == []


def test_a_checkpoint_that_breaks_a_margin_clearly_is_dropped_and_one_within_noise_of_it_is_not():
    found = {0: figures(0.3), 5: figures(0.5), 10: figures(0.9, subject=0.5)}
    assert clearly_worse(found, SELECT) == [10]
    noisy = figures(0.9)
    noisy["subject"] = [1.0] * 14 + [0.0] * 2  # lost 0.125 on average: 0.2 standard errors beyond the margin
    assert clearly_worse(found | {10: noisy}, SELECT) == []


def test_none_is_dropped_while_none_is_within_the_margins():
    found = {0: figures(0.3), 5: figures(0.5, subject=0.2), 10: figures(0.9, subject=0.1)}
    assert clearly_worse(found, SELECT) == []


def test_dropped_checkpoints_get_no_images_of_later_prompts_and_the_chosen_one_has_all():
    by_step = {0: figures(0.3), 5: figures(0.4), 10: figures(0.6), 15: figures(0.8), 20: figures(0.9)}
    found, asked = compared(by_step)
    assert [(one.num_prompts, one.compared, one.dropped) for one in found.rounds] == [
        (2, [5, 10, 15, 20], [5, 10]),
        (4, [15, 20], [15]),
        (8, [20], []),
    ]
    assert found.finalists == [20]
    assert asked == [
        *((step, 0) for step in (0, 5, 10, 15, 20)),
        *((step, 1) for step in (0, 15, 20)),
        *((step, 2) for step in (0, 20)),
    ]
    assert {step: len(own["judge"]) for step, own in found.figures.items()} == {
        0: 16,
        5: 4,
        10: 4,
        15: 8,
        20: 16,
    }
    selection = selection_of(found, SELECT)
    means = {step: {"judge": sum(own["judge"]) / 16, "subject": 1.0} for step, own in by_step.items()}
    assert selection["step"] == choose(means, SELECT).step == 20
    assert selection["admissible"] == [20]
    assert (
        "step 5 and step 10 had no images of more than 2 prompts, being clearly worse by then"
        in selection["reason"]
    )


def test_the_number_of_images_is_between_a_worse_half_dropped_in_each_round_and_none_dropped():
    assert image_counts(4, SELECT) == (2 * (4 * 2 + 2 * 2 + 1 * 4), 2 * 4 * 8)
    assert image_counts(4, SELECT.model_copy(update={"halving": None})) == (64, 64)


def table_of(found):
    rounds = rounds_of(PROMPTS, STYLES, 0, SELECT)
    places = [(PROMPTS[index], STYLES[index], k) for part in rounds for index in part for k in range(2)]
    rows = [
        {
            "step": step,
            "prompt": prompt,
            "style": style,
            "seed": k,
            "judge": own["judge"][row],
            "subject": 1.0,
        }
        for step, own in found.figures.items()
        for row, (prompt, style, k) in enumerate(places[: len(own["judge"])])
    ]
    return pa.Table.from_pylist(rows)


def recomputed(table, steps=(5, 10, 15)):
    return recomputed_selection(table, PROMPTS, STYLES, steps, seed=0, select=SELECT)


@pytest.fixture
def found():
    return compared({0: figures(0.3), 5: figures(0.4), 10: figures(0.6), 15: figures(0.8)})[0]


def test_the_selection_recomputed_from_the_scores_is_the_one_of_the_stage(found):
    assert recomputed(table_of(found)) == selection_of(found, SELECT)


def test_scores_that_lack_a_checkpoint_or_an_image_or_have_one_too_many_are_refused(found):
    table = table_of(found)
    with pytest.raises(ArtifactError, match=r"lacks step 20, prompt 'prompt \d', seed 0"):
        recomputed(table, steps=(5, 10, 15, 20))
    with pytest.raises(ArtifactError, match="has 8 images that no round compares, first step 5"):
        recomputed(table, steps=(10, 15))
    with pytest.raises(ArtifactError, match="lacks step 15"):
        recomputed(table.slice(0, table.num_rows - 1))
    with pytest.raises(ArtifactError, match="repeats 1 images"):
        recomputed(pa.concat_tables([table, table.slice(0, 1)]))
    with pytest.raises(ArtifactError, match="has no column subject"):
        recomputed(table.drop_columns(["subject"]))


def test_a_checkpoint_dropped_against_the_rules_lacks_its_images(found):
    """Somebody who leaves out the images of a good checkpoint cannot have another one chosen."""
    table = table_of(found)
    keep = [row["step"] != 15 or index % 2 == 0 for index, row in enumerate(table.to_pylist())]
    with pytest.raises(ArtifactError, match="lacks step 15"):
        recomputed(table.filter(pa.array(keep)))
