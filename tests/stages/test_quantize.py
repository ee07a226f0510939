"""Stage quantize, on the transformer of the tiny base with a small change."""

import json
import weakref
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import FluxTransformer2DModel
from gguf import GGUFReader
from near_base import write_near_base

from srpo_core import artifacts
from srpo_core.config import (
    ControlWords,
    FormatLimits,
    GenerateSettings,
    ModelSettings,
    QuantizeSettings,
    RewardSettings,
    ScorerSettings,
    load_settings,
    profile_path,
)
from srpo_core.errors import ArtifactError, ConfigError, DataError, GateError
from srpo_core.fidelity.format_images import evaluated_images
from srpo_core.models import encode_prompts
from srpo_core.models.embeddings import write_embeddings
from srpo_core.stages import quantize
from srpo_core.weights.files import WEIGHTS

BASE = Path(__file__).resolve().parents[2] / "assets/tiny/family/base"
MODEL = ModelSettings(
    base="flux", path=str(BASE), height=64, width=64, max_sequence_length=12, embeddings="bfloat16"
)


REWARDS = [RewardSettings(scorer="open_clip", path=str(BASE.parent / "reward"), weight=1)]
JUDGE = ScorerSettings(scorer="style_subject_judge", path=str(BASE.parent / "judge_b"))
PROMPTS = ["red apple", "crab", "tiger face", "penguin", "rose"]
LOOSE = FormatLimits(max_relative_error=0.2, min_psnr=0, min_completeness=0, min_gain_kept=-100)


def formats(*names, **limits):
    chosen = dict.fromkeys(names, LOOSE) | {
        name: LOOSE.model_copy(update=changed) for name, changed in limits.items()
    }
    return QuantizeSettings(num_prompts=3, gain="judge_wanted", formats=chosen)


RESOURCES = load_settings(profile_path("tiny")).resources


def run(quantize_settings, seed=0, resources=RESOURCES):
    quantize.run(
        seed=seed,
        model=MODEL,
        rewards=REWARDS,
        judge=JUDGE,
        control_words=ControlWords.of(["Ink"], ["3D"]),
        generate=GenerateSettings(
            num_inference_steps=3,
            guidance_scale=3.5,
            batch_size=2,
            autocast=False,
            tf32=False,
            decode="whole",
        ),
        quantize=quantize_settings,
        resources=resources,
    )


def proof():
    return artifacts.read_json(artifacts.PROOF)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint as training writes it: float32 and slightly different from the base."""
    directory = tmp_path_factory.mktemp("trained")
    write_near_base(directory)
    return directory


@pytest.fixture
def before_quantize(tmp_path, monkeypatch, trained):
    """A directory in which the stages before quantize have run."""
    monkeypatch.chdir(tmp_path)
    checkpoint = artifacts.step_directory(10)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(trained)
    artifacts.write_json(
        artifacts.DECISION, {"schema_version": 2, "passed": True, "reason": "every rule holds"}
    )
    artifacts.write_json(artifacts.SELECTION, {"step": 10, "checkpoint": str(checkpoint)})
    write_embeddings("test", PROMPTS, ["emoji"] * 5, encode_prompts(MODEL, PROMPTS, batch_size=5))
    write_evaluation(base=0.1, aligned=0.5)
    return tmp_path


def write_evaluation(*, base, aligned, prompts=PROMPTS, metric="judge_wanted"):
    rows = [
        {
            "model": model,
            "prompt": prompt,
            "style": "emoji",
            "seed": seed,
            "metric": metric,
            "value": value,
        }
        for model, value in (("base", base), ("aligned", aligned))
        for prompt in prompts
        for seed in (0, 1)
    ]
    artifacts.FIGURES.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), artifacts.FIGURES)


def test_each_format_is_written_verified_recorded_by_tensor_and_counted(before_quantize, reports):
    run(formats("bf16", "fp8_e4m3fn", "q8_0"))
    assert proof()["refused"] == {}
    bf16, fp8, q8 = (proof()["formats"][name] for name in ("bf16", "fp8_e4m3fn", "q8_0"))
    assert 1e-4 < bf16["relative_error"] < 1e-2
    assert 1e-2 < fp8["relative_error"] < 8e-2
    assert 1e-3 < q8["relative_error"] < 2e-2
    assert proof()["prompts"] == PROMPTS
    assert set(bf16["files"]) == {"bf16/model-bf16.safetensors", "bf16/diffusion_pytorch_model.safetensors"}
    source = artifacts.sha256(artifacts.step_directory(10) / WEIGHTS)
    for figures in (bf16, fp8, q8):
        for name, entry in figures["files"].items():
            path = artifacts.QUANTIZED / name
            assert entry == {
                "bytes": path.stat().st_size,
                "sha256": artifacts.sha256(path),
                "source_sha256": source,
            }
    dtype, error, clipped, zeroed = fp8["tensors"]["double_blocks.1.img_mlp.0.weight"]
    assert dtype == "F8_E4M3"
    assert 0.02 < error < 0.04
    assert clipped == 0
    assert 0 <= zeroed < 0.2
    written = [(done, total) for label, done, total in reports if label == "write formats"]
    weights = written[0][1]
    assert written[0] == (0, weights)
    assert written[-1] == (weights, weights)
    assert len(written) > 3 * len(PROMPTS)
    assert [one for one in reports if one[0] == "measure format"][-1] == ("measure format", 3, 3)


def test_a_new_registry_entry_is_used_by_proof_report_disk_estimate_and_command(before_quantize, monkeypatch):
    from srpo_core import quantizers
    from srpo_core.preflight.disk import bytes_of_run
    from srpo_core.quantizers.conversion import is_block_weight
    from srpo_core.quantizers.encodings import BF16, F16
    from srpo_core.quantizers.standalone import quantize_checkpoint
    from srpo_core.report.formats import FORMATS_MARK, with_formats

    mixed = quantizers.Format(
        lambda name, shape: F16 if is_block_weight(name, shape) else BF16, "safetensors"
    )
    monkeypatch.setattr(quantizers, "QUANTIZERS", {**quantizers.QUANTIZERS, "fp16_blocks": mixed})
    run(formats("bf16", "fp16_blocks"))
    new = proof()["formats"]["fp16_blocks"]
    assert 0 < new["relative_error"] < proof()["formats"]["bf16"]["relative_error"]
    assert new["tensors"]["double_blocks.0.img_mlp.0.weight"][0] == "F16"
    assert "fp16_blocks" in with_formats(FORMATS_MARK, proof())
    tiny = load_settings(profile_path("tiny", BASE.parents[3]))
    without, added = (
        bytes_of_run(tiny.model_copy(update={"quantize": formats(*names)}), 1000)
        for names in (["bf16"], ["bf16", "fp16_blocks"])
    )
    assert added["formats, and their release"] - without["formats, and their release"] == 2 * 1000 * 4
    lines = list(
        quantize_checkpoint(
            BASE, ["fp16_blocks"], Path("out"), stem="new", bar=lambda *_: nullcontext(lambda _: None)
        )
    )
    assert len(lines) == 1
    assert Path("out/fp16_blocks/new-fp16_blocks.safetensors").is_file()


def test_the_proof_names_the_fallback_type_of_rows_that_are_no_multiple_of_256(before_quantize):
    """The tiny base is 128 wide, so only the rows of MLP output layers are multiples of ggml's block of 256."""
    run(formats("bf16", "q4_k_m"))
    figures = proof()["formats"]["q4_k_m"]
    kinds = {name: dtype for name, (dtype, *_) in figures["tensors"].items()}
    assert kinds["double_blocks.0.img_attn.qkv.weight"] == "Q5_1"
    assert kinds["double_blocks.0.img_mlp.0.weight"] == "Q5_0"
    assert kinds["single_blocks.0.linear2.weight"] == "Q5_0"
    assert kinds["double_blocks.0.img_mlp.2.weight"] == "Q4_K"
    expected = {"Q5_1": "Q5_K", "Q5_0": "Q4_K"}
    assert figures["meant"] == {name: expected[kind] for name, kind in kinds.items() if kind in expected}
    assert proof()["formats"]["bf16"]["meant"] == {}
    path = artifacts.QUANTIZED / "q4_k_m/model-q4_k_m.gguf"
    assert {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors} == kinds
    # measured on the weights that gguf-py reads: between the errors of Q8_0 and Q4_0
    assert 4e-2 < figures["relative_error"] < 0.1


def test_nothing_is_written_if_the_resources_require_a_missing_gpu(before_quantize, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"resources.use_gpu is true and this machine has no GPU"):
        run(formats("bf16"), resources=RESOURCES.model_copy(update={"use_gpu": True}))
    assert not artifacts.QUANTIZED.exists()


def test_at_most_one_set_of_weights_besides_the_base_is_in_memory(before_quantize, monkeypatch):
    """At full size each set has 48 GB, so the previous one must be freed before the next is read."""
    alive = []

    def counted(read):
        def reading(path):
            assert not [seen for seen in alive if seen() is not None], f"weights are left at {path}"
            weights = read(path)
            alive.extend(weakref.ref(value) for value in weights.values())
            return weights

        return reading

    monkeypatch.setattr(quantize, "read_file", counted(quantize.read_file))
    monkeypatch.setattr(quantize, "read_directory", counted(quantize.read_directory))
    load = quantize.load_transformer

    def loading(model, path):
        transformer = load(model, path)
        alive.extend(weakref.ref(value) for value in transformer.parameters())
        return transformer

    monkeypatch.setattr(quantize, "load_transformer", loading)
    run(formats("bf16", "q8_0"))
    assert len(alive) > 300


def test_images_are_compared_with_bf16_images_from_the_same_noise(before_quantize):
    run(formats("q4_0", "bf16", "q8_0"))
    figures = proof()["formats"]
    assert list(figures) == ["bf16", "q4_0", "q8_0"]
    assert (figures["bf16"]["psnr"], figures["bf16"]["completeness"]) == (None, 1.0)
    assert figures["q8_0"]["psnr"] > figures["q4_0"]["psnr"] + 5
    assert figures["q8_0"]["ssim"] > figures["q4_0"]["ssim"] > 0
    assert 0.5 < figures["q8_0"]["completeness"] < 2
    assert abs(figures["q8_0"]["reward_delta"]) < 0.05


def test_the_gain_kept_is_measured_on_the_images_of_evaluate(before_quantize):
    """The judge's figure of the generated images is between those that evaluate wrote."""
    run(formats("bf16"))
    first = proof()["formats"]["bf16"]["gain_kept"]
    write_evaluation(base=0.1, aligned=0.3)
    run(formats("bf16"))
    assert proof()["formats"]["bf16"]["gain_kept"] == pytest.approx(2 * first, rel=1e-4)
    write_evaluation(base=0.3, aligned=0.3)
    run(formats("bf16"))
    assert proof()["formats"]["bf16"]["gain_kept"] is None


def test_a_second_run_writes_the_same_bytes(before_quantize):
    def outputs():
        run(formats("bf16", "fp8_e4m3fn"))
        return {path: path.read_bytes() for path in Path("runs/quantize").rglob("*") if path.is_file()}

    first = outputs()
    assert len(first) == 5
    assert outputs() == first


def test_the_error_is_measured_on_the_written_file(before_quantize, monkeypatch):
    """A file that holds another model's weights is refused, although it loads."""
    run(formats("bf16"))
    usual = proof()["formats"]["bf16"]["relative_error"]
    honest = quantize.open_flux
    monkeypatch.setattr(quantize, "open_flux", lambda _: honest(BASE / "transformer"))
    with pytest.raises(GateError, match="format bf16 is refused: relative_error"):
        run(formats(bf16={"max_relative_error": 1.2 * usual}))


def test_a_format_that_misses_a_limit_is_left_out_and_the_proof_records_why(before_quantize, caplog):
    with caplog.at_level("WARNING", "srpo_core"):
        run(formats("bf16", "q8_0", fp8_e4m3fn={"max_relative_error": 0.001, "min_psnr": 90}))
    assert list(proof()["formats"]) == ["bf16", "q8_0"]
    assert not (artifacts.QUANTIZED / "fp8_e4m3fn").exists()
    first, second = proof()["refused"]["fp8_e4m3fn"]["refused"]
    assert first.startswith("relative_error 0.0")
    assert first.endswith("is above max_relative_error 0.001")
    assert second.endswith("is below min_psnr 90")
    assert "fp8_e4m3fn: left out: relative_error" in caplog.text


def test_bf16_cannot_be_left_out_of_a_release(before_quantize):
    with pytest.raises(GateError, match=r"format bf16 is refused: gain_kept .* is below min_gain_kept 50"):
        run(formats(bf16={"min_gain_kept": 50}))
    assert "bf16" in proof()["refused"]
    with pytest.raises(ConfigError, match=r"quantize\.formats lacks bf16"):
        run(formats("q8_0"))


def test_an_evaluation_that_ended_early_gives_all_its_prompts(before_quantize):
    assert evaluated_images(9, "judge_wanted", PROMPTS).prompts == PROMPTS


def test_an_unmeasured_gain_raises_an_error(before_quantize):
    with pytest.raises(
        ConfigError, match=r"quantize\.gain 'diversity' was not evaluated: known are judge_wanted"
    ):
        run(formats("bf16").model_copy(update={"gain": "diversity"}))


@pytest.mark.parametrize("metric", ["diversity", "kid", "alignment"])
def test_a_gain_that_needs_several_images_per_prompt_raises_an_error_before_writing(before_quantize, metric):
    write_evaluation(base=0.1, aligned=0.5, metric=metric)
    with pytest.raises(ConfigError, match=f"metric '{metric}'"):
        run(formats("bf16").model_copy(update={"gain": metric}))
    assert not list(artifacts.QUANTIZED.rglob("*.safetensors"))


def test_a_refused_model_is_not_written_in_any_format(before_quantize):
    artifacts.write_json(artifacts.DECISION, {"passed": False, "reason": "the subject is lost."})
    with pytest.raises(GateError, match="the subject is lost"):
        run(formats("bf16"))
    assert not Path("runs/quantize").exists()


def test_format_names_are_case_insensitive(before_quantize):
    run(formats("BF16"))
    assert list(artifacts.read_json(artifacts.PROOF)["formats"]) == ["bf16"]


def test_an_unknown_format_lists_the_known_ones(before_quantize):
    with pytest.raises(
        ConfigError, match=r"unknown quantizer 'q9': known are bf16, bf16_single, fp16, fp8_e4m3fn, "
    ):
        run(formats("q9"))


def test_a_missing_decision_names_the_stage_to_run(before_quantize):
    artifacts.DECISION.unlink()
    with pytest.raises(ArtifactError, match="run 'dvc repro gate' first"):
        run(formats("bf16"))


def test_a_damaged_checkpoint_raises_a_one_line_error(before_quantize, trained):
    checkpoint = artifacts.step_directory(10)
    checkpoint.unlink()
    checkpoint.mkdir()
    for path in trained.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes()[: -1 if path.suffix == ".json" else -500])
    (checkpoint / "config.json").write_text(json.dumps(FluxTransformer2DModel.load_config(trained)))
    with pytest.raises(DataError, match="step-000010") as caught:
        run(formats("bf16"))
    assert "\n" not in str(caught.value)
