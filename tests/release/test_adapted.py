"""A release with a LoRA and a refused format, from the view of a user."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srpo_core.artifacts import LORA_FILE, sha256
from srpo_core.errors import ConfigError
from srpo_core.release.download import pull
from srpo_core.release.generate import generate
from srpo_core.release.summary import describe, list_releases


def read(adapted_release, name):
    store, published = adapted_release
    return b"".join(store.read(published.version, name)).decode()


def test_a_lora_is_listed_and_shown_as_a_format(adapted_release):
    store, published = adapted_release
    manifest = store.manifest(published.version)
    assert list(manifest["formats"]) == ["bf16", "gguf_bf16", "lora", "q5_0"]
    assert manifest["formats"]["lora"] == [LORA_FILE]
    assert "lora" in list_releases(store)[0].formats
    (line,) = (line for line in describe(store, "candidate") if line.startswith("format   lora "))
    size = manifest["files"][LORA_FILE]["bytes"] / 1e6
    assert (
        f"{size:.1f} MB  rank 2 on {manifest['proof']['lora']['layers']} layers, for the base model" in line
    )


def test_the_lora_alone_cannot_generate_an_image(adapted_release, tmp_path):
    store, published = adapted_release
    with pytest.raises(ConfigError, match="has no format 'lora': known are bf16, gguf_bf16, q5_0"):
        generate(store, published.version, "x", output=tmp_path / "x.png", weights="lora")


def test_the_pulled_lora_added_to_the_base_gives_the_released_weights(adapted_release, reproduced, tmp_path):
    from diffusers import FluxPipeline

    store, published = adapted_release
    (path,) = pull(store, "candidate", format_name="LoRA", target=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".pulled.json", "manifest.json", LORA_FILE]
    assert sha256(path) == store.manifest(published.version)["proof"]["lora"]["sha256"]
    base = reproduced / "assets/tiny/family/base"
    pipeline = FluxPipeline.from_pretrained(base, text_encoder=None, text_encoder_2=None)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = pipeline.transformer.state_dict()
    released = load_file(Path(published.uri) / "transformer/diffusion_pytorch_model.safetensors")
    assert after.keys() == released.keys()
    for name, value in released.items():
        assert torch.allclose(after[name].float(), value.float(), rtol=2**-7, atol=1e-5), name
    changed = [name for name, value in released.items() if not torch.equal(before[name].bfloat16(), value)]
    assert len(changed) == store.manifest(published.version)["proof"]["lora"]["layers"]


def test_the_code_of_the_model_card_loads_the_lora(adapted_release, reproduced, tmp_path, monkeypatch):
    _, published = adapted_release
    directory = shutil.copytree(published.uri, tmp_path / "release")
    (directory / "assets").symlink_to(reproduced / "assets")
    monkeypatch.chdir(directory)
    card = Path("README.md").read_text()
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "lora" in text)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    (adapter,) = names["pipe"].get_list_adapters()["transformer"]
    ranks = {
        value.shape[0] for name, value in names["pipe"].transformer.state_dict().items() if "lora_A" in name
    }
    assert (adapter, ranks) == ("default_0", {2})


def test_a_refused_format_is_reported_with_its_reason_and_not_published(adapted_release):
    store, published = adapted_release
    manifest = store.manifest(published.version)
    (reason,) = manifest["proof"]["refused"]["fp8_e4m3fn"]["refused"]
    assert re.fullmatch(r"psnr [\d.]+ is below min_psnr 200.0", reason)
    assert f"Left out: **fp8_e4m3fn**, because {reason}.\n" in read(adapted_release, "README.md")
    page = read(adapted_release, "report.html")
    row = page[page.index('<td class="name">fp8_e4m3fn</td>') :].partition("</tr>")[0]
    assert f"left out: {reason}</td>" in row
    assert f"left out fp8_e4m3fn         {reason}" in list(describe(store, published.version))
    assert not [name for name in manifest["files"] if "fp8" in name]
    with pytest.raises(
        ConfigError, match="has no format 'fp8_e4m3fn': known are bf16, gguf_bf16, lora, q5_0"
    ):
        pull(store, published.version, format_name="fp8_e4m3fn", target=Path("nowhere"))
