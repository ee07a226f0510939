"""`srpo evaluate CHECKPOINT` on the tiny family."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from known_pairs import write_known_pairs

from srpo_core import artifacts
from srpo_core.cli.checkpoint_evaluation import evaluate_checkpoint, rule_table
from srpo_core.config import load_settings
from srpo_core.errors import ArtifactError, StoreError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tiny_project, tmp_path, monkeypatch):
    """The tiny preset with few steps, metrics and resamples, and six embedded test prompts."""
    from srpo_core.models import encode_prompts
    from srpo_core.models.embeddings import read_embeddings, write_embeddings

    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("assets").symlink_to(ROOT / "assets")
    shutil.copytree(tiny_project / "runs", "runs")
    write_known_pairs()
    prompts, styles, condition = read_embeddings("validation")
    whole = load_settings(ROOT / "profiles/tiny.yaml")
    names = [*prompts, "owl"]
    write_embeddings("test", names, [""] * 6, encode_prompts(whole.model, names, batch_size=8))
    for split in ("train", "validation"):
        write_embeddings(split, [f"{split} {prompt}" for prompt in prompts], styles, condition)
    needed = ["judge_wanted", "relative_reward", "reward", "diversity"]
    rules = {n: rule for n, rule in whole.gate.rules.items() if rule.metric in needed}
    return whole.model_copy(
        update={
            "generate": whole.generate.model_copy(update={"num_inference_steps": 2}),
            "evaluate": whole.evaluate.model_copy(
                update={"metrics": needed, "real_images": 0, "seeds_per_prompt": 2}
            ),
            "gate": whole.gate.model_copy(update={"rules": rules, "resamples": 400}),
        }
    )


def champion_rules(decision):
    return [rule for rule in decision["rules"] if rule["against"] == "champion"]


def publish_faded(settings, version, directory):
    """Publish a release whose transformer predicts a fifth of the base's velocity."""
    from srpo_core.models import load_transformer
    from srpo_core.storage import open_store

    transformer = load_transformer(settings.model, Path(settings.model.path) / "transformer")
    transformer.proj_out.weight.data.mul_(0.2)
    transformer.proj_out.bias.data.mul_(0.2)
    transformer.save_pretrained(directory)
    files = {f"transformer/{path.name}": path for path in directory.iterdir()}
    entries = {
        name: {"sha256": artifacts.sha256(path), "bytes": path.stat().st_size} for name, path in files.items()
    }
    open_store().publish(version, files, {"schema_version": 1, "files": entries, "content": version})


def test_the_base_is_refused_with_differences_of_zero(settings, tmp_path):
    checkpoint = Path(settings.model.path) / "transformer"
    decision = evaluate_checkpoint(settings, checkpoint, tmp_path / "out")
    assert decision["verdict"] == "refused"
    broken = {rule["name"] for rule in decision["rules"] if rule["verdict"] == "refuses"}
    assert "style_gained" in broken
    for rule in decision["rules"]:
        if rule["compare"] == "difference" and rule["against"] == "base":
            assert rule["value"] == 0
            assert rule["low"] < 0 < rule["high"], "six equal prompts do not prove equality"
    assert artifacts.read_json(tmp_path / "out/decision.json") == decision
    assert pq.read_table(tmp_path / "out/images.parquet").num_rows == 2 * 6 * 2
    assert pq.read_table(tmp_path / "out/figures.parquet").num_rows == 2 * 6 * 2 * 4
    assert artifacts.read_json(tmp_path / "out/summary.json")["checkpoint"] == str(checkpoint)
    assert not artifacts.EVALUATION.exists(), "the outputs of stage evaluate are not touched"


def test_the_champion_is_evaluated_and_its_rules_are_applied(settings, tmp_path, monkeypatch):
    """The champion predicts a fifth of the base's velocity, so its images remain noise; the checkpoint is the base."""
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    checkpoint = Path(settings.model.path) / "transformer"
    alone = evaluate_checkpoint(settings, checkpoint, tmp_path / "alone")
    assert {rule["verdict"] for rule in champion_rules(alone)} == {"does not apply"}
    publish_faded(settings, "tiny-1", tmp_path / "faded")
    settings = settings.model_copy(update={"champion": "tiny-1"})
    decision = evaluate_checkpoint(settings, checkpoint, tmp_path / "out")
    summary = artifacts.read_json(tmp_path / "out/summary.json")
    assert summary["champion"] == "tiny-1"
    means = summary["means"]
    assert means["aligned"] == means["base"]
    assert means["champion"]["reward"] < means["base"]["reward"] - 0.01
    for rule in champion_rules(decision):
        aligned, champion = (means[model][rule["metric"]] for model in ("aligned", "champion"))
        expected = aligned / champion if rule["compare"] == "ratio" else aligned - champion
        assert rule["value"] == pytest.approx(expected)
        assert rule["verdict"] in {"holds", "refuses"}
    with pytest.raises(StoreError, match="champion 'tiny-2' is not a version"):
        evaluate_checkpoint(settings.model_copy(update={"champion": "tiny-2"}), checkpoint, tmp_path / "no")


def test_a_path_that_is_not_a_checkpoint_gives_an_error_before_generation(settings, tmp_path):
    with pytest.raises(
        ArtifactError, match="nowhere is not a checkpoint: give a directory with a transformer's"
    ):
        evaluate_checkpoint(settings, Path("nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_table_of_rules_has_the_half_width_of_each_interval():
    rule = {
        "name": "kept",
        "metric": "judge_top5",
        "against": "base",
        "compare": "difference",
        "side": "at_least",
    }
    rule |= {
        "margin": -0.1,
        "severity": "refuse",
        "verdict": "holds",
        "value": -0.02,
        "low": -0.06,
        "high": 0.03,
    }
    broken = rule | {"name": "share", "compare": "ratio", "verdict": "refuses"}
    broken |= dict.fromkeys(("value", "low", "high"))
    head, first, second = rule_table({"rules": [rule, broken]})
    assert head.split() == ["rule", "verdict", "figure", "interval", "half", "width", "required"]
    assert re.split(r" {2,}", first)[:5] == ["kept", "holds", "-0.020", "-0.060 … +0.030", "0.045"]
    assert first.endswith("refuse: judge_top5 difference at least -0.1 against the base")
    assert second.split()[:5] == ["share", "refuses", "-", "-", "-"]
    assert first.index("0.045") == head.index("half width")
