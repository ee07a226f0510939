from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from srpo_core import artifacts
from srpo_core.config import EvaluateSettings, GateRule, GateSettings, load_settings
from srpo_core.errors import ArtifactError
from srpo_core.models.embeddings import write_embeddings
from srpo_core.protocols import Condition
from srpo_core.stages import gate as stage

PROMPTS = [f"p{number}" for number in range(6)]
EVALUATE = EvaluateSettings(
    num_prompts=6, seeds_per_prompt=2, metrics=["judge_wanted"], scorers={}, real_images=0, stages=[1.0]
)
MODEL = load_settings(Path(__file__).resolve().parents[2] / "params.yaml").model
SELECTION = {"step": 20, "admissible": [20], "reason": "step 20 is best", "curve": [], "checkpoint": "x"}


def settings(margin):
    rule = GateRule(
        metric="judge_wanted",
        against="base",
        compare="difference",
        side="at_least",
        margin=margin,
        severity="refuse",
        meaning="more of the wanted style is seen",
    )
    return GateSettings(
        confidence=0.95, resamples=500, objective="judge_wanted", rules={"style_gained": rule}
    )


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"model": model, "prompt": PROMPTS[prompt], "style": "food", "seed": seed, "metric": "judge_wanted"}
        | {"value": (0.3 if model == "base" else 0.6 + 0.02 * (prompt % 2) - 0.01) + 0.01 * prompt * seed}
        for model in ("base", "aligned")
        for prompt in range(6)
        for seed in range(2)
    ]
    artifacts.FIGURES.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), artifacts.FIGURES)
    artifacts.write_json(artifacts.SELECTION, SELECTION)
    write_prompts(PROMPTS)
    write_means(rows)


def write_means(rows):
    """Write the means of the rows' figures by model as stage evaluate does."""
    means = {
        model: {"judge_wanted": fmean(row["value"] for row in rows if row["model"] == model)}
        for model in {row["model"] for row in rows}
    }
    artifacts.write_json(artifacts.EVALUATION_SUMMARY, {"means": means})


def write_prompts(prompts):
    """Write the texts of the split test as stage embed does."""
    write_embeddings("test", prompts, ["food"] * len(prompts), Condition({"t": torch.zeros(len(prompts), 1)}))


def run(margin, champion=None):
    stage.run(seed=0, champion=champion, model=MODEL, evaluate=EVALUATE, gate=settings(margin=margin))


@pytest.mark.usefixtures("evaluated")
def test_a_refusal_is_written_and_the_stage_succeeds():
    run(margin=0.9)
    decision = artifacts.read_json(artifacts.DECISION)
    assert decision["schema_version"] == 2
    assert decision["verdict"] == "refused"
    assert decision["rules"][0]["value"] == pytest.approx(0.3)
    figures = artifacts.read_json(artifacts.GATE_FIGURES)
    assert figures["passed"] is False
    assert figures["rules"]["style_gained"]["value"] == pytest.approx(0.3)


@pytest.mark.usefixtures("evaluated")
def test_the_same_input_gives_the_same_bytes():
    run(margin=0.1)
    first = artifacts.DECISION.read_bytes()
    run(margin=0.1)
    assert artifacts.DECISION.read_bytes() == first
    assert artifacts.read_json(artifacts.DECISION)["passed"] is True


@pytest.mark.usefixtures("evaluated")
def test_a_damaged_evaluation_gives_a_one_line_error():
    artifacts.FIGURES.write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match=r"runs/evaluate/figures\.parquet is damaged") as caught:
        run(margin=0.1)
    assert "\n" not in str(caught.value)


def test_a_missing_evaluation_names_the_stage_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="run 'dvc repro evaluate' first"):
        run(margin=0.1)


@pytest.mark.usefixtures("evaluated")
def test_an_evaluation_of_fewer_prompts_than_were_embedded_is_an_error_with_the_number_that_is_needed():
    write_prompts([*PROMPTS, "p6"])
    with pytest.raises(ArtifactError) as caught:
        run(margin=0.1)
    assert str(caught.value) == (
        "runs/evaluate/figures.parquet must have 7 prompts with 2 seeds each, but lacks 2 images of each model, for "
        "instance prompt 'p6' seed 0: run 'dvc repro --force -s evaluate' to write it again"
    )


@pytest.mark.usefixtures("evaluated")
def test_a_champion_in_the_settings_must_be_in_the_evaluation():
    with pytest.raises(
        ArtifactError, match=r"has no rows of the champion, but champion in params\.yaml names one"
    ):
        run(margin=0.1, champion="tiny@1")
    assert not artifacts.DECISION.exists()


@pytest.mark.usefixtures("evaluated")
def test_rows_of_base_and_aligned_that_were_exchanged_are_an_error_that_says_so():
    rows = pq.read_table(artifacts.FIGURES).to_pylist()
    other = {"base": "aligned", "aligned": "base"}
    pq.write_table(
        pa.Table.from_pylist([row | {"model": other[row["model"]]} for row in rows]), artifacts.FIGURES
    )
    with pytest.raises(
        ArtifactError, match=r"figures\.parquet has the figures of the aligned in the rows of the base"
    ):
        run(margin=0.1)
    assert not artifacts.DECISION.exists()


@pytest.mark.usefixtures("evaluated")
def test_a_figure_that_was_changed_after_the_evaluation_is_an_error_that_names_its_model_and_metric():
    rows = pq.read_table(artifacts.FIGURES).to_pylist()
    rows[-1]["value"] += 0.001
    pq.write_table(pa.Table.from_pylist(rows), artifacts.FIGURES)
    with pytest.raises(
        ArtifactError, match=r"gives a mean judge_wanted of \S+ for the aligned, but \S+summary\.json says"
    ):
        run(margin=0.1)
