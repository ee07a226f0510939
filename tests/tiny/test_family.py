"""The shipped family has the classes and shapes of FLUX.1-dev at a smaller size; its files are safe and small."""

import json

import pytest
import torch

LARGEST, ALL = 10_000_000, 40_000_000


@pytest.fixture(scope="module")
def pipeline(tiny):
    """Load the pipeline as the README of the family does."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(tiny / "family/base")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_base_consists_of_the_classes_of_flux(pipeline):
    names = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert names["transformer"] == "FluxTransformer2DModel"
    assert names["vae"] == "AutoencoderKL"
    assert names["text_encoder"] == "CLIPTextModel"
    assert names["text_encoder_2"] == "T5EncoderModel"
    assert names["scheduler"] == "FlowMatchEulerDiscreteScheduler"


def test_the_base_matches_flux_dev_in_what_the_algorithm_uses(pipeline):
    vae, scheduler = pipeline.vae.config, pipeline.scheduler.config
    assert (vae.latent_channels, pipeline.vae_scale_factor) == (16, 8)
    assert pipeline.transformer.config.guidance_embeds
    assert scheduler.use_dynamic_shifting
    assert (scheduler.base_shift, scheduler.max_shift) == (0.5, 1.15)


def test_the_pipeline_needs_no_argument_beyond_size_and_sequence_length(pipeline):
    images = pipeline(
        "tiger face",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=12,
        generator=torch.manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (1, 3, 64, 64)
    assert float(images.float().std()) > 0.05


def test_the_shipped_tokenizers_equal_those_that_the_recipe_makes(pipeline, recipe_module, tiny, monkeypatch):
    monkeypatch.chdir(tiny / "recipe")
    captions = recipe_module("captions")
    subjects = json.loads((tiny / "family/subjects.json").read_text())
    texts = [captions.caption(name, 0) for name in (*subjects["train"], *subjects["eval"])]
    fresh = recipe_module("base").tokenizers()
    lengths = (captions.CLIP_TOKENS, captions.T5_TOKENS)
    for shipped, own, length in zip((pipeline.tokenizer, pipeline.tokenizer_2), fresh, lengths, strict=True):
        ids = captions.token_ids(shipped, texts, length)
        assert torch.equal(ids, captions.token_ids(own, texts, length))
    t5 = pipeline.tokenizer_2
    assert not (captions.token_ids(t5, texts, captions.T5_TOKENS) == t5.unk_token_id).any()


def test_there_are_no_pickles_or_files_over_10_mb_and_the_total_is_under_40_mb(tiny):
    files = [
        path for part in ("data", "family", "hpd") for path in (tiny / part).rglob("*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in files) <= ALL
    assert [path for path in files if path.stat().st_size >= LARGEST] == []
    kinds = {path.suffix for path in files}
    assert kinds <= {".safetensors", ".json", ".md", ".parquet", ".tar"}


def test_weights_have_half_precision(tiny):
    from safetensors import safe_open

    found = set()
    for path in (tiny / "family").rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert found <= {"BF16", "F16", "I64"}


def test_there_are_enough_subjects_and_none_is_in_both_splits(tiny):
    subjects = json.loads((tiny / "family/subjects.json").read_text())
    train, held_out = set(subjects["train"]), set(subjects["eval"])
    assert len(train | held_out) >= 150
    assert len(held_out) >= 40
    assert not train & held_out


def test_the_spread_over_seeds_starts_with_the_shipped_base(tiny):
    spread, measured = (
        json.loads((tiny / f"recipe/figures/{name}.json").read_text()) for name in ("spread", "measure")
    )
    own = spread["per_seed"]["0"]
    assert own == {name: measured[name] for name in own}
