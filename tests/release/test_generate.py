"""Generate images from a release: with the code of its model card and with `generate`."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from srpo_core.errors import ArtifactError, ConfigError, StoreError
from srpo_core.release.generate import generate


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


@pytest.fixture(scope="session")
def base_image(reproduced):
    """The base model's image for the card's prompt and settings."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(
        reproduced / "assets/tiny/family/base", torch_dtype=torch.bfloat16
    )
    image = pipeline(
        "tiger face",
        height=64,
        width=64,
        max_sequence_length=12,
        num_inference_steps=16,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    return np.asarray(image, dtype=float)


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def test_the_code_of_the_model_card_generates_an_image(release, tmp_path, monkeypatch, base_image):
    _, published = release
    directory = shutil.copytree(published.uri, tmp_path / "release")
    monkeypatch.chdir(directory)
    blocks = code_blocks(Path("README.md").read_text())
    text = "\n".join(blocks)
    assert len(blocks) == 1
    for line in (
        'FluxPipeline.from_pretrained(".", torch_dtype=torch.bfloat16)',
        "height=64,",
        "width=64,",
        "max_sequence_length=12,",
    ):
        assert line in text
    exec(compile(text, "README.md", "exec"), {})
    assert pixels("image.png").shape == (64, 64, 3)
    assert pixels("image.png").std() > 20
    # The weights of the release differ by 2e-4 from the base, so the images must be nearly equal.
    assert abs(pixels("image.png") - base_image).mean() < 12


def test_the_model_card_has_the_header_that_hubs_read(release):
    _, published = release
    card = (Path(published.uri) / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "base_model": "assets/tiny/family/base",
        "license": "apache-2.0",
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["text-to-image", "diffusers", "flux", "srpo"],
        "metrics": ["judge_wanted"],
    }
    assert "| q8_0 | `tiny-q8_0.gguf` | " in card
    assert "This model is 128 wide, so diffusers loads only\nits directories" in card
    assert "This model's are 32 wide, so ComfyUI cannot run it" in card
    assert 'the texts are "LICENSE", "NOTICE"' in card
    assert "arXiv preprint arXiv:2509.06942" in card
    assert f"# {published.version}\n" in card
    assert 'The wanted control words are\n"Ink"; the unwanted ones are "3D".' in card
    assert "| a judge sees more of the wanted style | 0.310 | at least 0.05 | holds |" in card
    assert "{{" not in card
    assert "\n\n\n" not in card


def test_generate_is_deterministic_and_depends_on_seed_and_format(release, tmp_path, base_image):
    store, _ = release
    first = generate(store, "candidate", "tiger face", output=tmp_path / "a/first.png")
    second = generate(store, "candidate", "tiger face", output=tmp_path / "second.png")
    assert first.read_bytes() == second.read_bytes()
    assert Image.open(first).size == (64, 64)
    assert abs(pixels(first) - base_image).mean() < 12
    other = generate(store, "candidate", "tiger face", output=tmp_path / "other.png", seed=1)
    assert abs(pixels(other) - pixels(first)).mean() > 0.5  # the base generates few variants of a subject
    eight = generate(store, "candidate", "tiger face", output=tmp_path / "eight.png", weights="FP8_e4m3fn")
    assert 0 < abs(pixels(eight) - pixels(first)).mean() < 25
    gguf = generate(store, "candidate", "tiger face", output=tmp_path / "gguf.png", weights="Q8_0")
    assert 0 < abs(pixels(gguf) - pixels(first)).mean() < abs(pixels(eight) - pixels(first)).mean()


def test_an_unknown_format_or_release_gives_an_error_that_lists_the_known_ones(release, tmp_path):
    store, published = release
    with pytest.raises(ConfigError, match="has no format 'q4': known are bf16, fp8_e4m3fn, q8_0"):
        generate(store, published.version, "x", output=tmp_path / "x.png", weights="q4")
    with pytest.raises(
        StoreError, match=f"has no release 'production': known are {published.version}, tiny/candidate"
    ):
        generate(store, "production", "x", output=tmp_path / "x.png")


def test_a_damaged_release_gives_a_one_line_error(damaged, tmp_path):

    store, directory = damaged
    weights = directory / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="cannot be loaded") as caught:
        generate(store, "candidate", "x", output=tmp_path / "x.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()
