import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from srpo_core import artifacts
from srpo_core.config import EvaluateSettings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.scorers.metrics import METRICS, MetricContext, measure
from srpo_core.stages import evaluate as stage

METRIC_NAMES = ["reward", "relative_reward", "judge_wanted", "judge_top1", "judge_top5", "diversity"]
SETTINGS = EvaluateSettings(num_prompts=3, seeds_per_prompt=2, metrics=METRIC_NAMES)


def select_step(step):
    selection = {"step": step, "checkpoint": str(artifacts.step_directory(step)), "admissible": [step]}
    artifacts.write_json(artifacts.SELECTION, selection)


def run(tiny_parts, **changes):
    parts = {name: part for name, part in tiny_parts.items() if name != "select_judge"}
    stage.run(evaluate=SETTINGS.model_copy(update=changes), **parts)
    return pq.read_table(artifacts.EVALUATION)


def fade(transformer):
    """A fifth of the velocity: the pictures stay noise."""
    transformer.proj_out.weight.mul_(0.2)
    transformer.proj_out.bias.mul_(0.2)


def of_model(rows, name):
    return [{k: v for k, v in row.items() if k != "model"} for row in rows if row["model"] == name]


def test_an_unchanged_model_has_the_base_s_very_pictures_and_figures(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    table = run(tiny_parts)
    assert table.column_names == ["model", "prompt", "style", "seed", "png", *METRIC_NAMES]
    rows = table.to_pylist()
    assert len(rows) == 2 * 3 * 2
    assert of_model(rows, "base") == of_model(rows, "aligned")
    summary = artifacts.read_json(artifacts.EVALUATION_SUMMARY)
    assert summary["step"] == 5
    assert summary["pictures_per_model"] == 6
    assert summary["change"] == dict.fromkeys(METRIC_NAMES, 0.0)


def test_another_model_draws_other_pictures_from_the_same_noise_and_the_summary_holds_the_means(
    tiny_run, tiny_parts
):
    tiny_run(5)
    tiny_run(10, fade)
    select_step(10)
    rows = run(tiny_parts).to_pylist()
    base, aligned = of_model(rows, "base"), of_model(rows, "aligned")
    keys = [(row["prompt"], row["style"], row["seed"]) for row in base]
    assert keys == [(row["prompt"], row["style"], row["seed"]) for row in aligned]
    assert keys[0] == ("penguin", "animals", 0)
    assert all(a["png"] != b["png"] for a, b in zip(base, aligned, strict=True))
    summary = artifacts.read_json(artifacts.EVALUATION_SUMMARY)
    means = summary["means"]
    for metric in METRIC_NAMES:
        assert means["aligned"][metric] == pytest.approx(np.mean([row[metric] for row in aligned]))
    assert means["aligned"]["reward"] < means["base"]["reward"] - 0.02
    assert summary["change"]["reward"] == means["aligned"]["reward"] - means["base"]["reward"]


def test_the_figures_can_be_measured_again_from_the_stored_pictures(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    rows = of_model(run(tiny_parts).to_pylist(), "base")
    context = MetricContext(tiny_parts["reward"], tiny_parts["judge"], tiny_parts["control_words"])
    for start in range(0, len(rows), 2):
        pair = rows[start : start + 2]
        arrays = np.stack([np.asarray(Image.open(io.BytesIO(row["png"]))) for row in pair])
        images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
        figures = measure(METRIC_NAMES, images, pair[0]["prompt"], context)
        for metric, values in figures.items():
            assert values == pytest.approx([row[metric] for row in pair], abs=1e-5)


def test_the_word_ink_in_the_embedding_is_seen_by_the_judge_and_by_the_reward(
    tiny_run, tiny_parts, tiny_condition
):
    from srpo_core.models.embeddings import read_embeddings, write_embeddings

    tiny_run(5)
    select_step(5)
    run(tiny_parts)
    plain = artifacts.read_json(artifacts.EVALUATION_SUMMARY)["means"]["base"]
    prompts, styles, _ = read_embeddings("test")
    write_embeddings("test", prompts, styles, tiny_condition[1])
    run(tiny_parts)
    ink = artifacts.read_json(artifacts.EVALUATION_SUMMARY)["means"]["base"]
    assert ink["judge_wanted"] > max(0.9, plain["judge_wanted"] + 0.3)
    assert ink["relative_reward"] > plain["relative_reward"] + 0.03


def test_all_files_are_the_same_when_run_again(tiny_run, tiny_parts):
    tiny_run(5, fade)
    select_step(5)
    files = (artifacts.EVALUATION, artifacts.EVALUATION_SUMMARY)
    run(tiny_parts)
    first = [path.read_bytes() for path in files]
    run(tiny_parts)
    assert first == [path.read_bytes() for path in files]


def test_only_the_metrics_asked_for_become_columns_each_once(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    table = run(tiny_parts, metrics=["judge_top5", "reward", "judge_top5"])
    assert table.column_names[5:] == ["judge_top5", "reward"]


def test_the_profile_s_metrics_are_all_there_are():
    assert set(METRIC_NAMES) == set(METRICS)


def test_one_seed_and_diversity_stop_before_anything_is_drawn(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    with pytest.raises(ConfigError, match="seeds_per_prompt is 1"):
        run(tiny_parts, seeds_per_prompt=1)
    assert not artifacts.EVALUATION.exists()


def test_a_missing_selection_or_checkpoint_is_named(tiny_run, tiny_parts):
    with pytest.raises(ArtifactError, match="dvc repro select"):
        run(tiny_parts)
    select_step(15)
    with pytest.raises(ArtifactError, match="step-000015"):
        run(tiny_parts)


def test_a_selection_without_a_step_is_damaged(tiny_run, tiny_parts):
    artifacts.write_json(artifacts.SELECTION, {"checkpoint": "x"})
    with pytest.raises(ArtifactError, match=r"selection\.json is damaged"):
        run(tiny_parts)
