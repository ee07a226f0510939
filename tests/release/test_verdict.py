"""The verdicts of a run are recomputed from its figures: an edited one is not published."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save, save_file

from srpo_core import artifacts
from srpo_core.config import load_settings
from srpo_core.errors import ArtifactError, GateError
from srpo_core.release.verdict import require_recomputed
from srpo_core.selection.choice import recomputed_selection
from srpo_core.weights.files import WEIGHTS

RULE = {
    "metric": "judge_wanted",
    "against": "base",
    "compare": "difference",
    "side": "at_least",
    "margin": 0.05,
    "severity": "refuse",
    "meaning": "more of the wanted style",
}
LIMITS = {"max_relative_error": 0.05, "min_psnr": 20, "min_completeness": 0.8, "min_gain_kept": 0.3}
FIGURES = {"relative_error": 0.004, "psnr": 31.5, "completeness": 1.0, "gain_kept": 0.9}
METRICS = ["judge_wanted", "relative_reward"]
FILE = "bf16/model-bf16.safetensors"


def weights_of(value):
    return save({"weight": np.full(2, value, np.float32)})


def write_figures(gain):
    rows = [
        {
            "model": model,
            "prompt": f"prompt {number}",
            "style": "x",
            "seed": 0,
            "metric": metric,
            "value": value,
        }
        for number in range(24)
        for model, value in (("base", 0.0), ("aligned", gain + (0.04 if number % 2 else -0.03)))
        for metric in METRICS
    ]
    pq.write_table(pa.Table.from_pylist(rows), artifacts.FIGURES)
    means = {"base": dict.fromkeys(METRICS, 0.0), "aligned": dict.fromkeys(METRICS, gain + 0.005)}
    artifacts.write_json(artifacts.EVALUATION_SUMMARY, {"means": means})


def write_scores(gain=0.3):
    rows = [
        {"step": step, "prompt": f"other {number}", "style": "x", "seed": 0, "judge_wanted": 0.4 + value}
        for step, value in ((0, 0.0), (10, gain))
        for number in range(4)
    ]
    artifacts.SELECT_SCORES.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), artifacts.SELECT_SCORES)


def write_selection(settings):
    """Write scores of base and step 10, and the selection that follows from them."""
    write_scores()
    names = [f"other {number}" for number in range(4)]
    table = pq.read_table(artifacts.SELECT_SCORES)
    selection = recomputed_selection(
        table, names, ["x"] * 4, [10], seed=settings.seed, select=settings.select
    )
    artifacts.write_json(artifacts.SELECTION, selection)


@pytest.fixture
def run(request, tmp_path, monkeypatch):
    """Write the files of a run that gained `request.param` (default 0.3) and decide by the real gate."""
    from srpo_core.stages import gate

    root = request.config.rootpath
    values = yaml.safe_load((root / "params.yaml").read_text())
    values["gate"] |= {"resamples": 2000, "rules": {"style_gained": RULE}}
    values["evaluate"] |= {"num_prompts": 24, "seeds_per_prompt": 1, "metrics": METRICS}
    values["select"] |= {"num_prompts": 4, "seeds_per_prompt": 1, "keep": {}}
    values["quantize"]["formats"] = {"bf16": LIMITS}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    artifacts.FIGURES.parent.mkdir(parents=True)
    artifacts.EMBEDDINGS.mkdir()
    for split, name, count in (("test", "prompt", 24), ("validation", "other", 4)):
        texts = {"prompts": [f"{name} {number}" for number in range(count)], "styles": ["x"] * count}
        path = artifacts.EMBEDDINGS / f"{split}.safetensors"
        save_file({"none": np.zeros(1)}, path, {"texts": json.dumps(texts)})
    write_figures(getattr(request, "param", 0.3))
    checkpoint = artifacts.step_directory(10)
    checkpoint.mkdir(parents=True)
    (checkpoint / WEIGHTS).write_bytes(weights_of(1.0))
    write_selection(settings)
    gate.run(
        seed=settings.seed,
        champion=None,
        model=settings.model,
        evaluate=settings.evaluate,
        gate=settings.gate,
    )
    path = artifacts.QUANTIZED / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    digests = [hashlib.sha256(content).hexdigest() for content in (b"weights", weights_of(1.0))]
    file = {"bytes": 7, "sha256": digests[0], "source_sha256": digests[1]}
    formats = {"bf16": {"files": {FILE: file}, "limits": LIMITS, "refused": [], **FIGURES}}
    artifacts.write_json(artifacts.PROOF, {"formats": formats, "refused": {}, "lora": None})
    return tmp_path, settings


def edit(path, change):
    value = artifacts.read_json(path)
    change(value)
    artifacts.write_json(path, value)


def test_a_run_whose_verdicts_follow_from_its_figures_is_accepted(run):
    require_recomputed(*run)


@pytest.mark.parametrize("run", [0.04], indirect=True)
def test_a_refused_decision_that_was_edited_to_passed_is_refused(run):
    with pytest.raises(GateError, match="the gate refused this model"):
        require_recomputed(*run)

    def forge(decision):
        decision |= {"passed": True, "verdict": "passed", "reason": "all rules hold."}
        decision["rules"][0] |= {"passed": True, "verdict": "holds", "low": 0.2, "value": 0.3, "high": 0.4}

    edit(artifacts.DECISION, forge)
    with pytest.raises(GateError, match=r"decision\.json says passed, but .* refuse the model: style_gained"):
        require_recomputed(*run)


def test_a_summary_with_other_means_than_the_figures_is_not_accepted(run):
    edit(artifacts.EVALUATION_SUMMARY, lambda summary: summary["means"]["aligned"].update(judge_wanted=0.9))
    with pytest.raises(ArtifactError, match="judge_wanted"):
        require_recomputed(*run)


def test_a_selection_without_an_admissible_checkpoint_is_refused_whatever_the_decision_says(run):
    edit(artifacts.SELECTION, lambda selection: selection.update(admissible=[]))
    with pytest.raises(GateError, match="no checkpoint was admissible"):
        require_recomputed(*run)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda one: one.update(step=20), "step is 20, but the figures give 10"),
        (lambda one: one.update(admissible=[10, 20]), r"admissible is \[10, 20\]"),
        (lambda one: one["curve"][1].update(judge_wanted=0.9), r"curve\.1\.judge_wanted is 0\.9"),
        (lambda one: one["rounds"][0].update(dropped=[20]), r"rounds\.0\.dropped is \[20\]"),
        (lambda one: one.update(reason="the best of all."), "another reason than its own figures"),
    ],
)
def test_each_edit_of_the_selection_is_found_and_named(run, change, where):
    edit(artifacts.SELECTION, change)
    with pytest.raises(GateError, match=rf"selection\.json .*{where}.* --force -s select'"):
        require_recomputed(*run)


def test_scores_that_choose_no_checkpoint_refuse_the_model_although_the_selection_says_otherwise(run):
    write_scores(gain=-0.3)
    with pytest.raises(GateError, match=r"curve\.1\.judge_wanted is 0\.7"):
        require_recomputed(*run)


def test_a_saved_checkpoint_that_was_not_compared_is_noticed(run):
    artifacts.step_directory(20).mkdir()
    with pytest.raises(ArtifactError, match=r"scores\.parquet lacks step 20"):
        require_recomputed(*run)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda decision: decision["rules"][0].update(value=0.9), r"rules\.style_gained\.value is 0\.9"),
        (lambda decision: decision["rules"][0].update(margin=-1.0), r"rules\.style_gained\.margin is -1\.0"),
        (lambda decision: decision["rules"].clear(), r"rules is \[\]"),
        (lambda decision: decision.update(reason="the best of all."), "another reason than its own figures"),
        (lambda decision: decision.update(confidence=0.99), r"confidence is 0\.99"),
        (lambda decision: decision.update(approved_by="someone"), "approved_by is 'someone'"),
    ],
)
def test_each_edit_of_a_passed_decision_is_found_and_named(run, change, where):
    edit(artifacts.DECISION, change)
    with pytest.raises(GateError, match=where) as caught:
        require_recomputed(*run)
    assert "\n" not in str(caught.value)


def test_the_last_digits_of_another_processor_and_the_sentences_that_round_them_are_accepted(run):
    def shift(decision):
        for end in ("value", "low", "high"):
            decision["rules"][0][end] *= 1 + 1e-9
        decision["rules"][0]["reason"] += " (rounded otherwise)"

    edit(artifacts.DECISION, shift)
    require_recomputed(*run)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda own: own.update(relative_error=0.06),
            r"relative_error 0\.06 is above max_relative_error 0\.05",
        ),
        (lambda own: own["limits"].update(max_relative_error=1.0), "was measured with other limits"),
        (lambda own: own["files"][FILE].update(sha256="0" * 64), "are of another file than"),
    ],
)
def test_each_edit_that_lets_a_format_pass_is_found(run, change, fault):
    edit(artifacts.PROOF, lambda proof: change(proof["formats"]["bf16"]))
    with pytest.raises(ArtifactError, match=rf"proof\.json is not the result of stage quantize .*{fault}"):
        require_recomputed(*run)


def test_a_format_that_the_settings_do_not_have_is_not_accepted(run):
    edit(artifacts.PROOF, lambda proof: proof["formats"].update(q4_0=proof["formats"]["bf16"]))
    with pytest.raises(ArtifactError, match="format q4_0 was measured with other limits"):
        require_recomputed(*run)


def test_files_of_another_checkpoint_than_the_evaluated_one_are_not_accepted(run):
    (artifacts.step_directory(10) / WEIGHTS).write_bytes(weights_of(2.0))
    with pytest.raises(
        ArtifactError, match=r"was not written from runs/train/checkpoints/step-000010, which was"
    ):
        require_recomputed(*run)


def test_weights_that_were_exchanged_after_they_were_measured_are_not_accepted(run):
    (artifacts.QUANTIZED / FILE).write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="are of another file than"):
        require_recomputed(*run)
