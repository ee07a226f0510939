import pyarrow.parquet as pq
import pytest
import torch

from srpo_core import artifacts
from srpo_core.config import HalvingSettings, SelectSettings
from srpo_core.errors import ArtifactError, ConfigError, DivergenceError
from srpo_core.generation import batches, tasks
from srpo_core.selection.choice import choose, recomputed_selection
from srpo_core.stages import select as stage

SETTINGS = SelectSettings(
    num_prompts=3, seeds_per_prompt=2, maximize="judge_wanted", keep={"judge_top5": -0.1}, halving=None
)
PROMPTS = ["penguin", "red apple", "tiger face"]
STYLES = ["animals", "food", "animals"]
BASE = {"judge_wanted": 0.3, "judge_top5": 0.9}


def means(**steps):
    """Return the means of the base and of each step, given as (judge_wanted, judge_top5)."""
    curve = {int(step[1:]): {"judge_wanted": a, "judge_top5": b} for step, (a, b) in steps.items()}
    return {0: BASE} | curve


def ruin(transformer):
    transformer.proj_out.weight.mul_(0.0)
    transformer.proj_out.bias.mul_(0.0)


def to_nan(transformer):
    transformer.proj_out.bias.fill_(torch.nan)


def run(tiny_parts, **changes):
    settings = SETTINGS.model_copy(update=changes)
    stage.run(select=settings, **{name: part for name, part in tiny_parts.items() if name != "judge"})
    return artifacts.read_json(artifacts.SELECTION)


def test_the_best_step_is_chosen_and_not_the_last():
    choice = choose(means(s5=(0.4, 0.9), s10=(0.7, 0.85), s15=(0.6, 0.85)), SETTINGS)
    assert choice.step == 10
    assert choice.admissible == [5, 10, 15]


def test_a_step_that_loses_more_than_a_margin_is_not_chosen_although_it_gains_most():
    choice = choose(means(s5=(0.4, 0.9), s10=(0.7, 0.81), s15=(0.9, 0.79)), SETTINGS)
    assert choice.step == 10
    assert choice.admissible == [5, 10]
    assert "step 10 has the best judge_wanted of the 2 of 3 checkpoints" in choice.reason
    assert "judge_wanted 0.300 → 0.700" in choice.reason
    assert "judge_top5 0.900 → 0.810, where a change of -0.100 is allowed" in choice.reason


def test_a_loss_of_exactly_the_margin_is_allowed():
    assert choose(means(s5=(0.4, 0.9 - 0.1)), SETTINGS).admissible == [5]
    assert choose(means(s5=(0.4, 0.9 - 0.1001)), SETTINGS).admissible == []


def test_the_earlier_step_is_chosen_on_a_tie():
    assert choose(means(s10=(0.7, 0.9), s5=(0.7, 0.9)), SETTINGS).step == 5


def test_without_margins_every_step_is_admissible():
    choice = choose(means(s5=(0.4, 0.0)), SETTINGS.model_copy(update={"keep": {}}))
    assert choice.admissible == [5]
    assert choice.reason.endswith("judge_wanted 0.300 → 0.400")


def test_a_positive_margin_requires_a_gain():
    settings = SETTINGS.model_copy(update={"keep": {"judge_top5": 0.02}})
    assert choose(means(s5=(0.8, 0.91), s10=(0.4, 0.93)), settings).step == 10


def test_the_step_with_the_smallest_breach_is_shown_if_none_is_admissible():
    choice = choose(means(s5=(0.4, 0.75), s10=(0.9, 0.5)), SETTINGS)
    assert choice.step == 5
    assert choice.admissible == []
    assert "all 2 checkpoints lose more than a margin" in choice.reason
    assert "step 5 loses least and is shown instead" in choice.reason


def test_the_worst_breach_of_a_step_counts():
    settings = SETTINGS.model_copy(update={"keep": {"judge_top5": -0.1, "judge_wanted": 0.2}})
    choice = choose(means(s5=(0.3, 0.9), s10=(0.45, 0.75)), settings)  # breaches .2 and 0; .05 and .05
    assert choice.step == 10


def test_an_unchanged_checkpoint_matches_the_base_and_a_ruined_one_is_inadmissible(tiny_run, tiny_parts):
    tiny_run(5)
    tiny_run(10, ruin)
    selection = run(tiny_parts)
    assert selection["step"] == 5
    assert selection["checkpoint"] == "runs/train/checkpoints/step-000005"
    assert selection["admissible"] == [5]
    assert [point["step"] for point in selection["curve"]] == [0, 5, 10]
    base, unchanged, ruined = ({k: v for k, v in p.items() if k != "step"} for p in selection["curve"])
    assert base == unchanged
    assert base["judge_top5"] > 0.8
    assert ruined["judge_top5"] < 0.4

    table = pq.read_table(artifacts.SELECT_SCORES)
    assert table.column_names == ["step", "prompt", "style", "seed", "judge_top5", "judge_wanted"]
    rows = table.to_pylist()
    assert len(rows) == 3 * 3 * 2
    of_base = [{k: v for k, v in row.items() if k != "step"} for row in rows if row["step"] == 0]
    assert of_base == [{k: v for k, v in row.items() if k != "step"} for row in rows if row["step"] == 5]
    assert {(row["prompt"], row["style"], row["seed"]) for row in of_base} == {
        (prompt, style, seed)
        for prompt, style in (("penguin", "animals"), ("red apple", "food"), ("tiger face", "animals"))
        for seed in (0, 1)
    }
    mean = sum(row["judge_wanted"] for row in of_base) / len(of_base)
    assert base["judge_wanted"] == pytest.approx(mean)


def test_the_stage_succeeds_with_nothing_admissible_if_all_checkpoints_are_ruined(tiny_run, tiny_parts):
    tiny_run(5, ruin)
    selection = run(tiny_parts)
    assert selection["step"] == 5
    assert selection["admissible"] == []


def test_both_files_are_reproducible_and_agree_with_those_of_another_batch_size(
    tiny_run, tiny_parts, monkeypatch
):
    """Also with images of the base that an earlier run has kept."""
    tiny_run(5)
    first = run(tiny_parts)
    content = files()
    keeping = tiny_parts["resources"].model_copy(update={"kept_images_gb": 1.0})
    names, honest = [], batches.generate_set
    monkeypatch.setattr(
        batches, "generate_set", lambda base, name, *a, **k: names.append(name) or honest(base, name, *a, **k)
    )
    for generated in ({"base", "step 5"}, {"step 5"}):
        names.clear()
        run(tiny_parts | {"resources": keeping})
        assert set(names) == generated
        assert files() == content
    generate = tiny_parts["generate"].model_copy(update={"batch_size": 1})
    other = run(tiny_parts | {"generate": generate})
    for key in ("judge_wanted", "judge_top5"):
        assert other["curve"][0][key] == pytest.approx(first["curve"][0][key], abs=0.02)


def test_another_seed_gives_other_images(tiny_run, tiny_parts):
    tiny_run(5)
    first = run(tiny_parts)
    assert run(tiny_parts | {"seed": 1})["curve"] != first["curve"]


def test_a_checkpoint_that_generates_nan_is_named(tiny_run, tiny_parts):
    tiny_run(5, to_nan)
    with pytest.raises(DivergenceError, match="step 5 generates NaN"):
        run(tiny_parts)
    assert not artifacts.SELECTION.exists()


def test_a_damaged_checkpoint_raises_a_one_line_error_that_names_it(tiny_run, tiny_parts):
    tiny_run(5)
    weights = artifacts.step_directory(5) / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError) as caught:
        run(tiny_parts)
    assert "step-000005" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_checkpoints_name_the_stage_to_run(tiny_run, tiny_parts):
    with pytest.raises(ArtifactError, match="dvc repro train"):
        run(tiny_parts)
    artifacts.CHECKPOINTS.mkdir(parents=True)
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        run(tiny_parts)


def test_an_unknown_metric_raises_an_error_before_anything_is_generated(tiny_run, tiny_parts):
    tiny_run(5, to_nan)
    with pytest.raises(ConfigError, match="unknown metric 'beauty'"):
        run(tiny_parts, maximize="beauty")


def test_a_nan_figure_raises_an_error():
    with pytest.raises(DivergenceError, match="judge_wanted of step 10 is nan"):
        choose(means(s5=(0.4, 0.9), s10=(float("nan"), 0.9)), SETTINGS)


def files():
    return [path.read_bytes() for path in (artifacts.SELECTION, artifacts.SELECT_SCORES)]


def test_an_interrupted_selection_generates_only_missing_images_and_gives_the_same_bytes(
    tiny_run, tiny_parts, monkeypatch
):
    """Three prompts with two seeds in batches of four: two parts for the base, two for the checkpoint."""
    tiny_run(5)
    run(tiny_parts)
    expected = files()
    generated = []
    original = batches.generate_set

    def cut_off(base, name, image_set, **options):
        if len(generated) == 3:
            raise KeyboardInterrupt
        generated.append((name, list(image_set.prompts)))
        return original(base, name, image_set, **options)

    monkeypatch.setattr(batches, "generate_set", cut_off)
    for path in (artifacts.SELECTION, artifacts.SELECT_SCORES):
        path.unlink()  # as DVC does before a stage
    with pytest.raises(KeyboardInterrupt):
        run(tiny_parts)
    assert generated == [("base", PROMPTS[:2]), ("base", PROMPTS[2:]), ("step 5", PROMPTS[:2])]
    assert not artifacts.SELECTION.exists()
    generated.clear()
    run(tiny_parts)
    assert generated == [("step 5", PROMPTS[2:])]
    assert files() == expected
    assert not list((artifacts.home() / "resume").iterdir())


def test_a_ruined_checkpoint_gets_images_of_the_first_prompts_only_and_the_choice_can_be_recomputed(
    tiny_run, tiny_parts, monkeypatch
):
    tiny_run(5)
    tiny_run(10, ruin)
    halving = HalvingSettings(rounds=2, distance=0.5)
    selection = run(tiny_parts, halving=halving)
    assert selection["step"] == 5
    assert [(one["compared"], one["dropped"]) for one in selection["rounds"]] == [([5, 10], [10]), ([5], [])]
    table = pq.read_table(artifacts.SELECT_SCORES)
    assert {step: table["step"].to_pylist().count(step) for step in (0, 5, 10)} == {0: 6, 5: 6, 10: 4}
    assert "step 10 had no images of more than 2 prompts" in selection["reason"]
    select = SETTINGS.model_copy(update={"halving": halving})
    again = recomputed_selection(table, PROMPTS, STYLES, [5, 10], seed=tiny_parts["seed"], select=select)
    assert again == selection
    assert not list((artifacts.home() / "resume").iterdir())


def test_batches_distributed_over_two_tasks_give_the_same_bytes(tiny_run, tiny_parts, monkeypatch):
    """The tasks run here one after the other; tests/generation/test_batches.py runs them on Ray."""
    tiny_run(5, ruin)
    run(tiny_parts)
    expected, shares = files(), []

    def in_tasks(job, directory, resources, make, kept):
        with tasks.exchange_for(job, directory) as (shared, exchange):
            missing = tasks.missing_files(job, directory)
            for first in range(resources.generate_workers):
                shares.append(missing[first :: resources.generate_workers])
                tasks.generate_in_task(shared, exchange, shares[-1], resources, make, kept)

    monkeypatch.setattr(tasks, "_generate_on_ray", in_tasks)
    two = tiny_parts["resources"].model_copy(update={"generate_workers": 2})
    run(tiny_parts | {"resources": two})
    assert len(shares) > 2
    assert all(shares[:2]), "both tasks have batches"
    assert files() == expected
