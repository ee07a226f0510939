"""Reading: a release is listed, verified, fetched, and draws images with its own card's lines."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from srpo_core.errors import ConfigError, StoreError
from srpo_core.release import fetch, generate, list_releases, resolve, verify
from srpo_core.storage import DirectoryStore, open_store, version_key


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


@pytest.fixture
def damaged(release, tmp_path):
    """A copy of the store, to be damaged: (store, directory of the release)."""
    store, published = release
    copy = shutil.copytree(store.uri, tmp_path / "store")
    return open_store(str(copy)), copy / version_key(published.version)


@pytest.fixture(scope="session")
def base_image(reproduced):
    """What the base draws for the card's prompt, by the card's settings."""
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


def test_the_lines_of_the_model_card_draw_an_image(release, tmp_path, monkeypatch, base_image):
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
    # The release is 2e-4 away from the base, so that it must draw nearly the same image.
    assert abs(pixels("image.png") - base_image).mean() < 12


def test_the_header_of_the_model_card_is_what_hubs_read(release):
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
    assert "this one is 128 wide, so diffusers opens its\ndirectories alone" in card
    assert "this model's are 32 wide, so ComfyUI cannot run it" in card
    assert 'the texts are "LICENSE", "NOTICE"' in card
    assert "arXiv preprint arXiv:2509.06942" in card
    assert f"# {published.version}\n" in card
    assert 'prefer "Ink" over "3D"' in card
    assert "| a judge sees more of the wanted style | 0.310 | at least 0.05 | holds |" in card
    assert "{{" not in card
    assert "\n\n\n" not in card


def test_an_image_is_drawn_from_an_alias_and_is_the_same_the_second_time(release, tmp_path, base_image):
    store, _ = release
    first = generate(store, "candidate", "tiger face", output=tmp_path / "a/first.png")
    second = generate(store, "candidate", "tiger face", output=tmp_path / "second.png")
    assert first.read_bytes() == second.read_bytes()
    assert Image.open(first).size == (64, 64)
    assert abs(pixels(first) - base_image).mean() < 12
    other = generate(store, "candidate", "tiger face", output=tmp_path / "other.png", seed=1)
    assert abs(pixels(other) - pixels(first)).mean() > 0.5  # the base draws few variants of a subject
    eight = generate(store, "candidate", "tiger face", output=tmp_path / "eight.png", weights="FP8_e4m3fn")
    assert 0 < abs(pixels(eight) - pixels(first)).mean() < 25
    gguf = generate(store, "candidate", "tiger face", output=tmp_path / "gguf.png", weights="Q8_0")
    assert 0 < abs(pixels(gguf) - pixels(first)).mean() < abs(pixels(eight) - pixels(first)).mean()


def test_an_unknown_format_or_release_is_named(release, tmp_path):
    store, published = release
    with pytest.raises(ConfigError, match="has no format 'q4': known are bf16, fp8_e4m3fn, q8_0"):
        generate(store, published.version, "x", output=tmp_path / "x.png", weights="q4")
    with pytest.raises(
        StoreError, match=f"has no release 'production': known are tiny/candidate, {published.version}"
    ):
        generate(store, "production", "x", output=tmp_path / "x.png")


def test_a_list_shows_versions_aliases_formats_and_size(release):
    store, published = release
    (line,) = list_releases(store)
    assert line.version == published.version
    assert line.aliases == ("candidate",)
    assert line.formats == ("bf16", "fp8_e4m3fn", "q8_0")
    assert 15e6 < line.num_bytes < 40e6


def test_an_empty_store_lists_nothing_and_knows_nothing(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert list_releases(store) == []
    with pytest.raises(StoreError, match="has no release 'candidate': known are none"):
        resolve(store, "candidate")


def test_a_release_is_verified_file_by_file(release, damaged):
    store, published = release
    assert verify(store, "candidate")["version"] == published.version
    copy, directory = damaged
    weights = directory / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (directory / "report.html").unlink()
    with pytest.raises(
        StoreError,
        match=r"is damaged: report\.html, transformer/diffusion_pytorch_model\.safetensors; restore",
    ):
        verify(copy, "candidate")


def test_a_store_that_fails_while_verifying_is_not_reported_as_damage(release, monkeypatch):
    store, _ = release

    def unreachable(self, version, name, start=0):
        raise StoreError("cannot be reached")
        yield

    monkeypatch.setattr(DirectoryStore, "read", unreachable)
    with pytest.raises(StoreError, match="cannot be reached"):
        verify(store, "candidate")


def test_a_damaged_release_that_cannot_be_loaded_is_one_line(damaged, tmp_path):
    from srpo_core.errors import ArtifactError

    store, directory = damaged
    weights = directory / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="cannot be loaded") as caught:
        generate(store, "candidate", "x", output=tmp_path / "x.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()


def test_a_release_in_a_directory_is_used_where_it_lies(release, tmp_path):
    store, published = release
    assert fetch(store, "candidate", cache=tmp_path / "cache") == Path(published.uri)
    assert not (tmp_path / "cache").exists()


@pytest.mark.s3
def test_a_release_in_a_bucket_is_downloaded_once_verified_and_draws(release, bucket, tmp_path, monkeypatch):
    local, published = release
    store = open_store(f"s3://{bucket}")
    manifest = local.manifest(published.version)
    files = {name: Path(published.uri) / name for name in manifest["files"]}
    store.publish(published.version, files, manifest)
    directory = fetch(store, published.version, cache=tmp_path / "cache")
    for name, path in files.items():
        assert (directory / name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [directory.name]
    here = generate(local, published.version, "tiger face", output=tmp_path / "here.png")
    there = generate(
        store, published.version, "tiger face", output=tmp_path / "there.png", cache=tmp_path / "cache"
    )
    assert here.read_bytes() == there.read_bytes()
    monkeypatch.setattr(type(store), "read", lambda *_: pytest.fail("downloaded a second time"))
    assert fetch(store, published.version, cache=tmp_path / "cache") == directory


@pytest.mark.s3
def test_a_damaged_download_is_refused_and_leaves_nothing(release, bucket, tmp_path, monkeypatch):
    local, published = release
    store = open_store(f"s3://{bucket}")
    manifest = local.manifest(published.version)
    store.publish(
        published.version, {name: Path(published.uri) / name for name in manifest["files"]}, manifest
    )
    monkeypatch.setattr(type(store), "read", lambda *_: iter([b"other bytes"]))
    with pytest.raises(StoreError, match="does not have its SHA-256"):
        fetch(store, published.version, cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.s3
def test_a_download_that_was_killed_goes_on_after_the_files_that_it_had_whole(
    release, bucket, tmp_path, monkeypatch
):
    local, published = release
    store = open_store(f"s3://{bucket}")
    manifest = local.manifest(published.version)
    files = {name: Path(published.uri) / name for name in manifest["files"]}
    store.publish(published.version, files, manifest)
    honest, asked = type(store).read, []

    def killed(self, version, name):
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        yield from honest(self, version, name)

    monkeypatch.setattr(type(store), "read", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(store, published.version, cache=tmp_path / "cache")
    directory = fetch(store, published.version, cache=tmp_path / "cache")
    assert sorted(asked) == sorted([*files, asked[2]]), "only the one that was cut off is read twice"
    for name, path in files.items():
        assert (directory / name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [directory.name]
