"""`srpo doctor`, and `srpo align` before a run, on weights that are not what their names say."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from wrong_files import PAGE, POINTER

from srpo_core.config import load_settings
from srpo_core.errors import ArtifactError, DataError
from srpo_core.models import base_entry, load_base
from srpo_core.models.loading import load_text_encoders
from srpo_core.preflight.disk import count_weights
from srpo_core.preflight.weight_files import check_weights, require_readable_weights
from srpo_core.scorers.registry import load_scorer

ROOT = Path(__file__).resolve().parents[2]
TINY = load_settings(ROOT / "profiles/tiny.yaml")
FAMILY = "assets/tiny/family"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A copy of the demo's models."""
    return shutil.copytree(ROOT / FAMILY, tmp_path_factory.mktemp("models") / "family")


@pytest.fixture
def checkout(family, tmp_path, monkeypatch):
    """A directory with the graph of stages, and links to the copy of the demo's models: `replace` a file, never write it."""
    shutil.copytree(family, tmp_path / FAMILY, copy_function=os.link)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def faults(settings=TINY):
    return [detail for good, detail in check_weights(settings) if not good]


def test_intact_weights_have_no_fault(checkout):
    assert faults() == []
    require_readable_weights(TINY)


WEIGHTS = [
    "base/transformer/diffusion_pytorch_model.safetensors",
    "base/vae/diffusion_pytorch_model.safetensors",
    "base/text_encoder/model.safetensors",
    "base/text_encoder_2/model.safetensors",
    "reward/tiny-emoji-clip.safetensors",
    "judge_a/judge.safetensors",
    "judge_b/judge.safetensors",
]
TEXTS = [
    "base/model_index.json",
    "base/transformer/config.json",
    "base/vae/config.json",
    "base/text_encoder_2/config.json",
    "base/tokenizer/tokenizer.json",
    "base/tokenizer_2/tokenizer_config.json",
    "base/scheduler/scheduler_config.json",
    "reward/tiny-emoji-clip.json",
    "judge_a/config.json",
]


@pytest.mark.parametrize("name", WEIGHTS + TEXTS)
def test_doctor_and_align_name_a_file_that_is_something_else(checkout, name):
    path = Path(FAMILY, name)
    whole = path.read_bytes()
    wrong = {
        POINTER: "this is a Git LFS pointer: run git lfs pull",
        PAGE: "this is an HTML page: ",
        b"": "this file is empty: fetch it again",
        whole[: len(whole) // 2]: "cut at " if name in WEIGHTS else "is damaged (no JSON in UTF-8: ",
        b"\xef\xbb\xbf{}" if name in TEXTS else b"\x80\x02}q\0.": "byte order mark"
        if name in TEXTS
        else "pickle",
    }
    for content, message in wrong.items():
        replace(path, content)
        (fault,) = faults()
        assert fault.startswith(str(path))
        assert message in fault
        assert "\n" not in fault
        with pytest.raises(
            DataError, match=r"^(model|rewards\[0\]|select_judge|judge)\.path: assets/"
        ) as caught:
            require_readable_weights(TINY)
        assert str(caught.value).endswith(fault)


def test_the_disk_estimate_survives_a_pointer_and_says_nothing_about_it(checkout):
    transformer = Path(FAMILY, "base/transformer")
    assert count_weights(transformer) > 0
    replace(transformer / "diffusion_pytorch_model.safetensors", POINTER)
    assert count_weights(transformer) == 0


def load_encoders(model):
    return load_text_encoders(base_entry(model), model)


@pytest.mark.parametrize(
    ("name", "load"), [(WEIGHTS[0], load_base), (WEIGHTS[1], load_base), (TEXTS[4], load_encoders)]
)
def test_loading_the_base_says_what_doctor_says(checkout, name, load):
    replace(Path(FAMILY, name), POINTER)
    with pytest.raises(ArtifactError, match="this is a Git LFS pointer: run git lfs pull"):
        load(TINY.model)


@pytest.mark.parametrize(("name", "scorer"), [(WEIGHTS[4], TINY.rewards[0]), (WEIGHTS[6], TINY.judge)])
def test_loading_a_scorer_says_what_doctor_says(checkout, name, scorer):
    replace(Path(FAMILY, name), PAGE)
    with pytest.raises(ArtifactError, match="this is an HTML page: "):
        load_scorer(scorer)


def with_model(path):
    return TINY.model_copy(update={"model": TINY.model.model_copy(update={"path": path})})


def test_what_is_given_in_place_of_a_pipeline_is_named_with_what_to_give(checkout):
    import torch

    shutil.copy(Path(FAMILY, WEIGHTS[0]), "flux.safetensors")
    torch.save({"a": torch.ones(1)}, "flux.pt")
    Path("empty").mkdir()
    Path("models.lock").write_text(
        yaml.safe_dump(
            {
                "models/dev": {
                    "repo": "bfl/dev",
                    "revision": "a" * 40,
                    "files": {"x": None},
                    "architecture": {},
                }
            }
        )
    )
    expected = {
        "someone/FLUX.1-dev": "if it is a repository of the hub, download it and give the directory: hf download "
        "someone/FLUX.1-dev --local-dir models/FLUX.1-dev",
        "bfl/dev": "bfl/dev is a repository of the hub, in models.lock as models/dev: run 'srpo fetch' and give models/dev",
        "https://huggingface.co/bfl/dev": "https://huggingface.co/bfl/dev is a URL: download what it names and give the path of the copy",
        "flux.safetensors": "flux.safetensors is a safetensors file: the directory of a diffusers pipeline",
        "flux.pt": "flux.pt is a pickle of PyTorch: the directory of a diffusers pipeline",
        "assets/nothing": "assets/nothing is missing: check the path",
        "empty": "empty/model_index.json is missing: give the directory of a diffusers pipeline",
        "models/dev": "models/dev: 1 of 1 files are missing, first x: run 'srpo fetch'",
    }
    for path, message in expected.items():
        (fault,) = faults(with_model(path))
        assert message in fault
        with pytest.raises(ArtifactError) as caught:
            load_base(with_model(path).model)
        assert "\n" not in str(caught.value)


def test_what_is_given_in_place_of_a_scorer_is_named_with_what_to_give(checkout):
    import torch
    from gguf import GGUFWriter

    torch.save({"a": torch.ones(1)}, "clip.pt")
    writer = GGUFWriter("clip.gguf", "clip")
    writer.add_tensor("a", torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    Path("page.safetensors").write_bytes(PAGE)
    needed = "the directory with a scorer's weights and configuration is needed"
    expected = {
        "clip.pt": f"clip.pt is a pickle of PyTorch: {needed}",
        "clip.gguf": f"clip.gguf is a GGUF file: {needed}",
        "page.safetensors": "page.safetensors: this is an HTML page: ",
        "openai/clip": "hf download openai/clip --local-dir models/clip",
        "s3://bucket/clip": "s3://bucket/clip is a URL: ",
    }
    for path, message in expected.items():
        reward = TINY.rewards[0].model_copy(update={"path": path})
        settings = TINY.model_copy(update={"rewards": [reward]})
        (fault,) = faults(settings)
        assert message in fault
        with pytest.raises(DataError, match=r"^rewards\[0\]\.path: ") as caught:
            require_readable_weights(settings)
        assert message in str(caught.value)
        with pytest.raises(ArtifactError) as caught:
            load_scorer(reward)
        assert message in str(caught.value)


def test_parts_of_a_pipeline_that_are_missing_or_only_there_as_a_variant_are_named(checkout):
    base = Path(FAMILY, "base")
    (base / "vae/diffusion_pytorch_model.safetensors").rename(
        base / "vae/diffusion_pytorch_model.fp16.safetensors"
    )
    (base / "text_encoder/model.safetensors").unlink()
    (base / "transformer/config.json").unlink()
    shutil.rmtree(base / "tokenizer_2")
    found = "\n".join(faults())
    assert len(faults()) == 4
    assert (
        "diffusion_pytorch_model.fp16.safetensors is a variant of it, which is read only under the usual name"
        in found
    )
    assert "text_encoder/model.safetensors is missing: fetch it" in found
    assert "transformer/config.json is missing: fetch it" in found
    assert "tokenizer_2 is missing, which model_index.json names: fetch the whole pipeline" in found
    with pytest.raises(DataError, match=r"\(3 more: 'srpo doctor' lists them\)$"):
        require_readable_weights(TINY)


@pytest.mark.parametrize(
    ("part", "load"),
    [("transformer/diffusion_pytorch_model", load_base), ("text_encoder_2/model", load_encoders)],
)
def test_quantized_weights_are_refused_with_the_command_that_decodes_them(checkout, part, load):
    """diffusers loads scaled float8 without its scales and without a word."""
    import torch
    from safetensors.torch import load_file, save_file

    path = Path(FAMILY, "base", f"{part}.safetensors")
    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.dim() == 2)
    path.unlink()
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, path)
    (fault,) = faults()
    assert fault.startswith(f"{path}: {name} is stored as F8_E4M3, and a run needs whole floats")
    assert "'srpo quantize SOURCE --format bf16 --out DIR'" in fault
    with pytest.raises(ArtifactError, match="is stored as F8_E4M3"):
        load(TINY.model)


def test_files_that_no_scorer_reads_are_not_opened(checkout):
    for name in ("notes.txt", "cache.bin", "page.html"):
        Path(FAMILY, "reward", name).write_bytes(b"")
    Path(FAMILY, "base/other.safetensors").write_bytes(POINTER)
    assert faults() == []


def test_the_first_key_of_a_path_is_named(checkout):
    same = TINY.model_copy(update={"judge": TINY.select_judge})
    replace(Path(FAMILY, "judge_a/config.json"), PAGE)
    with pytest.raises(
        DataError, match=r"^select_judge\.path: assets/tiny/family/judge_a/config\.json: this is an HTML"
    ):
        require_readable_weights(same)


def test_a_reward_without_weights_says_what_is_there_instead(checkout):
    reward = Path(FAMILY, "reward")
    (reward / "tiny-emoji-clip.safetensors").unlink()
    (reward / "clip.gguf").write_bytes(b"GGUF")
    (fault,) = faults()
    assert fault.startswith(
        f"{reward} should have weights (.safetensors, or .pt as published), but has only clip.gguf"
    )


def test_the_shards_of_an_index_are_opened_and_compared_with_it(checkout):
    import json

    from safetensors.torch import load_file, save_file

    directory = Path(FAMILY, "base/transformer")
    tensors = load_file(directory / "diffusion_pytorch_model.safetensors")
    (directory / "diffusion_pytorch_model.safetensors").unlink()
    first, second = sorted(tensors)[::2], sorted(tensors)[1::2]
    for name, part in (("a.safetensors", first), ("b.safetensors", second)):
        save_file({key: tensors[key] for key in part}, directory / name)
    index = directory / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert faults() == []
    index.write_text(json.dumps({"weight_map": weight_map | {first[0]: "b.safetensors"}}))
    assert all(f"do not agree about the tensor {first[0]}" in fault for fault in faults())
    assert len(faults()) == 2
    index.write_text(json.dumps({"weight_map": weight_map}))
    (directory / "b.safetensors").write_bytes(POINTER)
    (fault,) = faults()
    assert "b.safetensors: this is a Git LFS pointer" in fault
    (directory / "b.safetensors").unlink()
    (fault,) = faults()
    assert "1 of the 2 files of" in fault
    assert "are missing, first b.safetensors" in fault


def test_a_graph_without_a_stage_that_reads_the_base_needs_no_weights(checkout):
    shutil.rmtree(FAMILY)
    with pytest.raises(DataError, match=r"model\.path: assets/tiny/family/base is missing: check the path"):
        require_readable_weights(TINY)
    Path("dvc.yaml").write_text("stages: {ingest: {cmd: x, deps: [a], outs: [b]}}")
    require_readable_weights(TINY)


def test_weights_that_dvc_will_fetch_are_not_missing(checkout):
    Path("mine.dvc").write_text("outs: []\n")
    assert faults(with_model("mine")) == []
