import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from srpo_core import artifacts
from srpo_core.config import (
    ControlWords,
    EvaluateSettings,
    GateRule,
    GateSettings,
    RewardSettings,
    ScorerSettings,
    load_settings,
)
from srpo_core.errors import ArtifactError, ConfigError, DataError, GateError, StoreError
from srpo_core.generation import batches
from srpo_core.generation.images import ImageSet
from srpo_core.models import loaded
from srpo_core.prompts import balanced_order
from srpo_core.protocols import Condition
from srpo_core.scorers import canaries
from srpo_core.scorers.metrics import METRICS, MetricContext, measure
from srpo_core.stages import evaluate as stage

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["penguin", "red apple", "tiger face"]
STYLES = ["animals", "food", "animals"]
HPS = ScorerSettings(scorer="hps_v2", path=str(ROOT / "assets/tiny/family/reward"))
METRIC_NAMES = [
    "reward",
    "relative_reward",
    "judge_wanted",
    "judge_top1",
    "judge_top5",
    "diversity",
    "saturation",
]
SETTINGS = EvaluateSettings(
    num_prompts=3, seeds_per_prompt=2, metrics=METRIC_NAMES, scorers={}, real_images=0, stages=[1.0]
)


GATE = GateSettings(
    confidence=0.95,
    resamples=2000,
    objective="relative_reward",
    rules={
        "style_gained": GateRule(
            metric="judge_wanted",
            against="base",
            compare="difference",
            side="at_least",
            margin=0.05,
            severity="refuse",
            meaning="more of the wanted style",
        )
    },
)


@pytest.fixture
def tiny_run(tiny_run, tiny_condition):
    """The fixture of conftest.py, with other prompts for training and validation."""
    from srpo_core.models.embeddings import write_embeddings

    for split in ("train", "validation"):
        names = [f"{split} {number}" for number in range(3)]
        write_embeddings(split, names, ["", "", ""], tiny_condition[0])
    return tiny_run


def select_step(step):
    selection = {"step": step, "checkpoint": str(artifacts.step_directory(step)), "admissible": [step]}
    artifacts.write_json(artifacts.SELECTION, selection)


def run(tiny_parts, **changes):
    parts = {name: part for name, part in tiny_parts.items() if name != "select_judge"}
    champion = changes.pop("champion", None)
    gate = changes.pop("gate", GATE)
    stage.run(evaluate=SETTINGS.model_copy(update=changes), gate=gate, champion=champion, **parts)
    return pq.read_table(artifacts.EVALUATION)


def publish(version, transformer):
    """Publish a release with the files of a transformer to the store of SRPO_STORE."""
    from srpo_core.storage import open_store

    files = {f"transformer/{path.name}": path for path in transformer.iterdir()}
    entries = {
        name: {"sha256": artifacts.sha256(path), "bytes": path.stat().st_size} for name, path in files.items()
    }
    open_store().publish(version, files, {"schema_version": 1, "files": entries, "content": version})


def figures():
    """Return the figures as {(model, prompt, seed): {metric: value}}."""
    found = {}
    for row in pq.read_table(artifacts.FIGURES).to_pylist():
        found.setdefault((row["model"], row["prompt"], row["seed"]), {})[row["metric"]] = row["value"]
    return found


def shrink_velocity(transformer):
    """Reduce the velocity to a fifth, so that images remain noise."""
    transformer.proj_out.weight.mul_(0.2)
    transformer.proj_out.bias.mul_(0.2)


def rows_of(rows, name):
    return [{k: v for k, v in row.items() if k != "model"} for row in rows if row["model"] == name]


def test_an_unchanged_model_has_the_same_images_and_figures_as_the_base(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    table = run(tiny_parts)
    assert table.column_names == ["model", "prompt", "style", "seed", "png"]
    rows = table.to_pylist()
    assert len(rows) == 2 * 3 * 2
    assert rows_of(rows, "base") == rows_of(rows, "aligned")
    long = pq.read_table(artifacts.FIGURES)
    assert long.column_names == ["model", "prompt", "style", "seed", "metric", "value"]
    assert long.num_rows == 2 * 3 * 2 * len(METRIC_NAMES)
    measured = figures()
    for prompt, seed in {(row["prompt"], row["seed"]) for row in rows}:
        assert measured["base", prompt, seed] == measured["aligned", prompt, seed]
    summary = artifacts.read_json(artifacts.EVALUATION_SUMMARY)
    assert summary["step"] == 5
    assert summary["images_per_model"] == 6
    assert summary["change"] == dict.fromkeys(METRIC_NAMES, 0.0)


def test_a_changed_model_generates_other_images_and_the_summary_contains_the_means(tiny_run, tiny_parts):
    tiny_run(5)
    tiny_run(10, shrink_velocity)
    select_step(10)
    rows = run(tiny_parts).to_pylist()
    base, aligned = rows_of(rows, "base"), rows_of(rows, "aligned")
    keys = [(row["prompt"], row["style"], row["seed"]) for row in base]
    assert keys == [(row["prompt"], row["style"], row["seed"]) for row in aligned]
    assert keys[0] == ("penguin", "animals", 0)
    assert all(a["png"] != b["png"] for a, b in zip(base, aligned, strict=True))
    summary = artifacts.read_json(artifacts.EVALUATION_SUMMARY)
    means = summary["means"]
    measured = [own for (model, *_), own in figures().items() if model == "aligned"]
    for metric in METRIC_NAMES:
        assert means["aligned"][metric] == pytest.approx(np.mean([own[metric] for own in measured]))
    assert means["aligned"]["reward"] < means["base"]["reward"] - 0.02
    assert summary["change"]["reward"] == means["aligned"]["reward"] - means["base"]["reward"]


def test_an_evaluation_ends_at_the_first_stage_that_decides_and_its_images_are_the_first_of_a_fixed_order(
    tiny_run, tiny_parts
):
    """Without an admissible checkpoint the model is refused, whatever it scores."""
    tiny_run(5)
    tiny_run(10, shrink_velocity)
    select_step(10)
    metrics = ["relative_reward", "judge_wanted", "common_edge", "diversity"]
    run(tiny_parts, metrics=metrics)
    of_all = figures()
    assert {prompt for _, prompt, _ in of_all} == set(PROMPTS)
    # three prompts are too few for an interval, so only the last stage decides
    run(tiny_parts, metrics=metrics, stages=[0.5, 1.0])
    staged = figures()
    assert staged.keys() == of_all.keys()
    for key, own in of_all.items():
        assert staged[key] == pytest.approx(own, abs=0.02)  # other batches
    selection = artifacts.read_json(artifacts.SELECTION)
    artifacts.write_json(artifacts.SELECTION, selection | {"admissible": []})
    rows = run(tiny_parts, metrics=metrics, stages=[0.5, 1.0]).to_pylist()
    first = [PROMPTS[index] for index in balanced_order(PROMPTS, STYLES, tiny_parts["seed"])[:2]]
    assert {row["prompt"] for row in rows} == set(first)
    ended = figures()
    assert ended.keys() == {key for key in staged if key[1] in first}
    for key, own in ended.items():
        assert own["judge_wanted"] == staged[key]["judge_wanted"]
    assert artifacts.read_json(artifacts.EVALUATION_SUMMARY)["images_per_model"] == 4
    assert not list((artifacts.home() / "resume").glob("generate-*/"))


def test_the_figures_can_be_measured_again_from_the_stored_images(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    rows = rows_of(run(tiny_parts).to_pylist(), "base")
    context = MetricContext(tiny_parts["rewards"], tiny_parts["judge"], tiny_parts["control_words"])
    for start in range(0, len(rows), 2):
        pair = rows[start : start + 2]
        arrays = np.stack([np.asarray(Image.open(io.BytesIO(row["png"]))) for row in pair])
        images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
        stored = [figures()["base", row["prompt"], row["seed"]] for row in pair]
        for metric, values in measure(METRIC_NAMES, images, pair[0]["prompt"], context).items():
            assert values.tolist() == pytest.approx([own[metric] for own in stored], abs=1e-5)


def test_the_word_ink_in_the_embedding_raises_judge_and_reward_figures(tiny_run, tiny_parts, tiny_condition):
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


def test_a_second_run_writes_the_same_files(tiny_run, tiny_parts):
    tiny_run(5, shrink_velocity)
    select_step(5)
    files = (artifacts.EVALUATION, artifacts.FIGURES, artifacts.EVALUATION_SUMMARY)
    run(tiny_parts)
    first = [path.read_bytes() for path in files]
    run(tiny_parts)
    assert first == [path.read_bytes() for path in files]


def test_each_requested_metric_is_measured_once(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    run(tiny_parts, metrics=["judge_top5", "reward", "judge_top5"])
    assert all(list(own) == ["judge_top5", "reward"] for own in figures().values())


def test_the_tiny_profile_measures_every_metric_that_its_judge_supports():
    measured = load_settings(ROOT / "profiles/tiny.yaml").evaluate.metrics
    assert set(measured) == set(METRICS) - {"judge_score", "judge_sgp"}


def test_a_further_scorer_adds_two_metrics_and_hps_adds_a_table_by_style(tiny_run, tiny_parts):
    tiny_run(5)
    select_step(5)
    run(tiny_parts, scorers={"hps": HPS}, metrics=["reward"])
    own = figures()["base", "penguin", 0]
    assert own.keys() == {"reward", "hps", "hps_sgp"}
    assert own["hps"] == pytest.approx(own["reward"], abs=1e-6), "the same weights by another name"
    table = artifacts.read_json(artifacts.EVALUATION_SUMMARY)["hps_benchmark"]["hps"]
    assert table.keys() == {"base", "aligned"}
    animals = [figures()["base", prompt, 0]["hps"] for prompt in ("penguin", "tiger face")]
    assert table["base"]["animals"] == {"mean": pytest.approx(100 * np.mean(animals)), "std": 0.0}


def test_the_hps_table_is_of_the_score_whatever_its_weight_in_training():
    reward = RewardSettings(scorer="hps_v2", path="nowhere", weight=2)
    context = MetricContext([reward], HPS, ControlWords.of(["Ink"], ["3D"]))
    images = ImageSet("evaluate", ["owl", "rose"], ["animals"] * 2, Condition({}), 2, 0)
    figures = {"base": {"reward": torch.tensor([0.5, 9.0, 0.7, 9.0])}}
    table = stage._hps_benchmark(figures, images, context)
    assert table["reward"]["base"]["Average"]["mean"] == pytest.approx(30)


def test_a_training_or_validation_prompt_is_refused_as_a_test_prompt(tiny_run, tiny_parts, tiny_condition):
    from srpo_core.models.embeddings import write_embeddings

    tiny_run(5)
    select_step(5)
    for split, did in (("train", "was trained on"), ("validation", "chose the checkpoint")):
        write_embeddings(split, ["owl", "red apple", "rose"], ["", "", ""], tiny_condition[0])
        with pytest.raises(DataError, match=f"{split}.safetensors, for instance 'red apple', which {did}"):
            run(tiny_parts)
        write_embeddings(split, [f"{split} {n}" for n in range(3)], ["", "", ""], tiny_condition[0])
    run(tiny_parts)


@pytest.mark.parametrize("way", ["directory", pytest.param("bucket", marks=pytest.mark.s3)])
def test_a_champion_is_loaded_from_its_release_and_compared_in_pairs(
    tiny_run, tiny_parts, request, monkeypatch, way
):
    monkeypatch.setenv(
        "SRPO_STORE", "store" if way == "directory" else f"s3://{request.getfixturevalue('bucket')}/r"
    )
    tiny_run(5, shrink_velocity)
    tiny_run(10)
    select_step(10)
    publish("tiny-1", artifacts.step_directory(5))
    keeping = {"resources": tiny_parts["resources"].model_copy(update={"kept_images_gb": 1.0})}
    images = run(tiny_parts | keeping, champion="tiny-1")
    means = artifacts.read_json(artifacts.EVALUATION_SUMMARY)["means"]
    assert means["aligned"] == means["base"]
    assert means["champion"]["reward"] < means["base"]["reward"] - 0.02
    assert {model for model, *_ in figures()} == {"base", "aligned", "champion"}
    names, honest = [], batches.generate_set
    monkeypatch.setattr(
        batches, "generate_set", lambda base, name, *a, **k: names.append(name) or honest(base, name, *a, **k)
    )
    assert run(tiny_parts | keeping, champion="tiny-1", metrics=["saturation"]) == images
    assert set(names) == {"aligned"}, "a later run reuses the images of base and champion"
    reads, load, read = [], loaded._load, loaded.read_base_weights
    monkeypatch.setattr(loaded, "_load", lambda *a: reads.append(a[1]) or load(*a))
    monkeypatch.setattr(loaded, "read_base_weights", lambda *a: reads.append(a[1]) or read(*a))
    again = run(tiny_parts, champion="tiny-1", stages=[0.5, 1.0])
    assert [row["model"] for row in again.to_pylist()] == [row["model"] for row in images.to_pylist()]
    assert len(reads) == 2 * 3 - 1, "the second stage begins with the model that the first has read last"
    with pytest.raises(StoreError, match=r"champion 'tiny-2' is not a version in .*: known are tiny-1"):
        run(tiny_parts, champion="tiny-2")


def test_an_altered_champion_is_refused(tiny_run, tiny_parts, monkeypatch):
    from srpo_core.storage import open_store

    monkeypatch.setenv("SRPO_STORE", "store")
    tiny_run(5)
    select_step(5)
    publish("tiny-1", artifacts.step_directory(5))
    weights = next(open_store().local("tiny-1").glob("transformer/*.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="does not match its manifest: run 'srpo verify tiny-1'"):
        run(tiny_parts, champion="tiny-1")


def test_diversity_with_one_seed_raises_an_error_before_generation(tiny_run, tiny_parts):
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


@pytest.mark.parametrize("spelling", ["validation 0", " VALIDATION\u00a00"])
def test_a_training_prompt_is_refused_as_a_validation_prompt(tiny_run, tiny_parts, tiny_condition, spelling):
    from srpo_core.models.embeddings import write_embeddings

    tiny_run(5)
    select_step(5)
    names = [spelling, "train 1", "train 2"]
    write_embeddings("train", names, ["", "", ""], tiny_condition[0])
    with pytest.raises(DataError, match=r"1 training prompts are also in .*validation") as caught:
        run(tiny_parts)
    assert f"for instance {spelling!r}: what a model was trained on" in str(caught.value)
    assert not artifacts.EVALUATION.exists()


def test_a_new_metric_is_evaluated_used_by_the_gate_and_explained_in_the_report(
    tiny_run, tiny_parts, register
):
    """The metric is only added to the registry."""
    from srpo_core.config import GateRule, GateSettings
    from srpo_core.gates.pairs import pair_up
    from srpo_core.report.page import metric_changes
    from srpo_core.scorers.metrics import Metric, metric_notes
    from srpo_core.stages import gate

    def blueness(images, prompt, context):
        del prompt, context
        return images[:, 2].mean((1, 2))

    tiny_run(10, shrink_velocity)
    select_step(10)
    register(METRICS, "blueness", Metric(blueness, (0, 1), "this test", "how blue the image is"))
    rows = run(tiny_parts, metrics=["reward", "blueness"]).to_pylist()
    pairs = pair_up(artifacts.read_table(artifacts.FIGURES), artifacts.FIGURES)
    for model, measured in (("base", pairs.base), ("aligned", pairs.aligned)):
        images = [Image.open(io.BytesIO(row["png"])) for row in rows_of(rows, model)]
        expected = [np.asarray(image, dtype=float)[..., 2].mean() / 255 for image in images]
        assert measured["blueness"].tolist() == pytest.approx(expected, abs=1e-6)
    rule = GateRule(
        metric="blueness",
        against="base",
        compare="difference",
        side="within",
        margin=0.001,
        severity="warn",
        meaning="the images are as blue as before",
    )
    kept = rule.model_copy(update={"severity": "refuse", "margin": 1.0})
    gate.run(
        seed=0,
        champion=None,
        model=load_settings(ROOT / "params.yaml").model,
        evaluate=SETTINGS.model_copy(update={"metrics": ["reward", "blueness"]}),
        gate=GateSettings(
            confidence=0.95, resamples=1000, objective="reward", rules={"blue": rule, "kept": kept}
        ),
    )
    decided, _ = artifacts.read_json(artifacts.DECISION)["rules"]
    assert (decided["metric"], decided["verdict"]) == ("blueness", "warns")
    notes = {change["name"]: change["note"] for change in metric_changes(pairs, metric_notes({}))}
    assert notes["blueness"] == "how blue the image is"


def test_a_scorer_that_fails_a_known_answer_stops_the_run_before_an_image_is_generated(
    tiny_run, tiny_parts, tmp_path
):
    tiny_run(5)
    select_step(5)
    weights = load_file(Path(tiny_parts["judge"].path) / "judge.safetensors")
    own = shutil.copytree(tiny_parts["judge"].path, tmp_path / "untrained")
    weights["a.weight"] = torch.zeros_like(weights["a.weight"])
    save_file(weights, own / "judge.safetensors")
    judge = tiny_parts["judge"].model_copy(update={"path": str(own)})
    with pytest.raises(
        GateError, match=r"scorer judge \(timm_judge in .*untrained\) fails a question .* have a style"
    ):
        run({**tiny_parts, "judge": judge})
    assert not artifacts.EVALUATION.exists()


def test_every_further_scorer_is_asked_by_its_name(tiny_run, tiny_parts, monkeypatch):
    tiny_run(5)
    select_step(5)
    asked = []
    original = canaries.require_answers
    monkeypatch.setattr(
        canaries,
        "require_answers",
        lambda name, *rest, **known: (asked.append(name.split()[0]), original(name, *rest, **known)),
    )
    run(tiny_parts, scorers={"clip": HPS})
    assert asked == ["reward", "judge", "clip"]
