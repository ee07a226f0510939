"""Stage quantize, on the tiny base's transformer after a small step."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from srpo_core import artifacts
from srpo_core.config import FormatLimit, ModelSettings, QuantizeSettings
from srpo_core.errors import ArtifactError, ConfigError, GateError
from srpo_core.models.embeddings import write_embeddings
from srpo_core.protocols import Condition
from srpo_core.stages import quantize

BASE = Path(__file__).resolve().parents[2] / "assets/tiny/family/base"
MODEL = ModelSettings(base="flux", path=str(BASE), height=64, width=64, max_sequence_length=12)


def formats(**limits):
    return QuantizeSettings(
        formats={name: FormatLimit(max_relative_error=limit) for name, limit in limits.items()}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint as training leaves it: float32, a little away from the base."""
    directory = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = FluxTransformer2DModel.from_pretrained(BASE / "transformer", torch_dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 2e-4)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def road(tmp_path, monkeypatch, trained):
    """A directory in which the stages before quantize have run."""
    monkeypatch.chdir(tmp_path)
    checkpoint = artifacts.step_directory(10)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(trained)
    artifacts.write_json(artifacts.DECISION, {"passed": True, "reason": "every rule holds"})
    artifacts.write_json(artifacts.SELECTION, {"step": 10, "checkpoint": str(checkpoint)})
    torch.manual_seed(1)
    condition = Condition(torch.randn(9, 12, 128), torch.randn(9, 128))
    write_embeddings("test", [f"prompt {index}" for index in range(9)], ["emoji"] * 9, condition)
    return tmp_path


def test_each_format_is_written_and_proven_within_its_expected_error(road):
    quantize.run(seed=0, model=MODEL, quantize=formats(bf16=0.02, fp8_e4m3fn=0.15))
    proof = artifacts.read_json(artifacts.PROOF)
    bf16, fp8 = proof["formats"]["bf16"], proof["formats"]["fp8_e4m3fn"]
    assert 1e-4 < bf16["relative_error"] < 1e-2
    assert 1e-2 < fp8["relative_error"] < 8e-2
    assert proof["prompts"] == [f"prompt {index}" for index in range(8)]
    for name, figures in proof["formats"].items():
        path = artifacts.QUANTIZED / figures["file"]
        assert path.parent.name == name
        assert figures["sha256"] == artifacts.sha256(path)
        assert figures["bytes"] == path.stat().st_size
        assert figures["clipped"] == 0
        assert 0 <= figures["zeroed"] < 0.2
    assert fp8["bytes"] < 0.65 * bf16["bytes"]


def test_a_second_run_leaves_the_same_bytes(road):
    def outputs():
        quantize.run(seed=0, model=MODEL, quantize=formats(bf16=0.02, fp8_e4m3fn=0.15))
        return {path: path.read_bytes() for path in Path("runs/quantize").rglob("*") if path.is_file()}

    first = outputs()
    assert len(first) == 5
    assert outputs() == first


def test_the_error_is_measured_on_the_file_not_on_what_was_meant(road, monkeypatch):
    """A format that writes another model's weights is refused, although its file loads."""
    from srpo_core import quantizers

    honest = quantizers.QUANTIZERS["bf16"]

    def base_instead(source, target):
        return honest.write(BASE / "transformer", target)

    wrong = quantizers.Quantizer(base_instead, honest.read)
    monkeypatch.setattr(quantizers, "QUANTIZERS", {"bf16": wrong})
    with pytest.raises(GateError, match="format bf16 is refused"):
        quantize.run(seed=0, model=MODEL, quantize=formats(bf16=0.005))


def test_a_format_above_its_limit_is_refused_with_figure_and_limit_and_the_proof_stays(road):
    with pytest.raises(GateError, match=r"format fp8_e4m3fn is refused: .* error 0\.0\d+ is above .* 0\.001"):
        quantize.run(seed=0, model=MODEL, quantize=formats(fp8_e4m3fn=0.001))
    assert artifacts.read_json(artifacts.PROOF)["formats"]["fp8_e4m3fn"]["max_relative_error"] == 0.001


def test_a_refused_model_is_not_written_in_any_format(road):
    artifacts.write_json(artifacts.DECISION, {"passed": False, "reason": "the subject is lost."})
    with pytest.raises(GateError, match="the subject is lost"):
        quantize.run(seed=0, model=MODEL, quantize=formats(bf16=0.02))
    assert not Path("runs/quantize").exists()


def test_a_name_in_capitals_is_the_same_format(road):
    quantize.run(seed=0, model=MODEL, quantize=formats(BF16=0.02))
    assert list(artifacts.read_json(artifacts.PROOF)["formats"]) == ["bf16"]


def test_an_unknown_format_lists_the_known_ones(road):
    with pytest.raises(ConfigError, match=r"unknown quantizer 'q9': known are bf16, fp8_e4m3fn"):
        quantize.run(seed=0, model=MODEL, quantize=formats(q9=0.02))


def test_a_missing_decision_names_the_stage_to_run(road):
    artifacts.DECISION.unlink()
    with pytest.raises(ArtifactError, match="run 'dvc repro gate' first"):
        quantize.run(seed=0, model=MODEL, quantize=formats(bf16=0.02))


def test_a_damaged_checkpoint_is_one_line(road, trained):
    checkpoint = artifacts.step_directory(10)
    checkpoint.unlink()
    checkpoint.mkdir()
    for path in trained.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes()[: -1 if path.suffix == ".json" else -500])
    (checkpoint / "config.json").write_text(json.dumps(FluxTransformer2DModel.load_config(trained)))
    with pytest.raises(ArtifactError, match="step-000010") as caught:
        quantize.run(seed=0, model=MODEL, quantize=formats(bf16=0.02))
    assert "\n" not in str(caught.value)


def test_an_error_that_is_not_a_number_is_refused():
    figures = {"bf16": {"relative_error": math.nan, "max_relative_error": 0.02}}
    with pytest.raises(GateError, match="nan is above"):
        quantize._require_exact_enough(figures)
