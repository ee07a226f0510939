"""Checkpoints from other programs: shards, single files, prefixes, damaged files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from wrong_files import PAGE, POINTER

from srpo_core.errors import ConfigError, DataError
from srpo_core.quantizers import QUANTIZERS, convert, open_flux
from srpo_core.quantizers.key_map import bfl_names
from srpo_core.weights.files import WEIGHTS

BF16 = {"bf16": QUANTIZERS["bf16"]}


def digests(source, target):
    return [file.sha256 for file in convert(open_flux(source), BF16, target, stem="m")["bf16"]]


def in_bfl_names(checkpoint, prefix=""):
    state = load_file(checkpoint / WEIGHTS)
    rows = bfl_names({name: tuple(value.shape) for name, value in state.items()})
    return {
        f"{prefix}{name}": torch.cat([state[piece.tensor][piece.start : piece.stop] for piece in pieces])
        for name, pieces in rows.items()
    }


def rewritten(checkpoint, target, change):
    """Return a copy of a checkpoint with tensors changed by `change(state)`."""
    shutil.copytree(checkpoint, target)
    state = load_file(checkpoint / WEIGHTS)
    change(state)
    save_file(state, target / WEIGHTS, {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def expected(checkpoint, tmp_path_factory):
    return digests(checkpoint, tmp_path_factory.mktemp("expected"))


def test_a_sharded_checkpoint_gives_the_same_bytes_as_a_single_file(checkpoint, expected, tmp_path):
    FluxTransformer2DModel.from_pretrained(checkpoint).save_pretrained(
        tmp_path / "shards", max_shard_size="3MB"
    )
    shutil.copy(checkpoint / "config.json", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert digests(tmp_path / "shards", tmp_path / "out") == expected


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
def test_a_single_file_in_the_original_naming_gives_the_same_tensors(checkpoint, expected, tmp_path, prefix):
    state = in_bfl_names(checkpoint, prefix)
    if prefix:
        state["first_stage_model.decoder.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "flux.safetensors")
    assert digests(tmp_path / "flux.safetensors", tmp_path / "out")[1] == expected[1]
    config = json.loads((tmp_path / "out/bf16/config.json").read_text())
    assert FluxTransformer2DModel.from_config(config).config.num_layers == 2
    assert (config["attention_head_dim"], config["num_attention_heads"]) == (128, 2)


def test_a_single_file_in_diffusers_naming_gives_the_same_tensors(checkpoint, expected, tmp_path):
    shutil.copy(checkpoint / WEIGHTS, tmp_path / "flux.safetensors")
    assert digests(tmp_path / "flux.safetensors", tmp_path / "out")[1] == expected[1]


def test_our_own_single_file_converts_back_to_the_diffusers_directory(checkpoint, expected, tmp_path):
    (single, _) = convert(open_flux(checkpoint), BF16, tmp_path / "there", stem="m")["bf16"]
    assert digests(single.path, tmp_path / "back")[1] == expected[1]
    given = json.loads((checkpoint / "config.json").read_text())
    assert json.loads((tmp_path / "back/bf16/config.json").read_text()) == given


def test_a_pipeline_directory_is_read_as_its_transformer(checkpoint, expected, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    assert digests(tmp_path, tmp_path / "out") == expected


def test_a_single_file_with_narrow_heads_raises_an_error_about_its_rotary_axes(tmp_path):
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    model.save_pretrained(tmp_path / "model")
    save_file(in_bfl_names(tmp_path / "model"), tmp_path / "flux.safetensors")
    with pytest.raises(ConfigError, match="does not state its rotary axes"):
        convert(open_flux(tmp_path / "flux.safetensors"), BF16, tmp_path / "out", stem="m")
    q8 = {"q8_0": QUANTIZERS["q8_0"]}
    assert convert(open_flux(tmp_path / "flux.safetensors"), q8, tmp_path / "out", stem="m")["q8_0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_nan_weight_is_named_and_no_file_is_left(checkpoint, tmp_path, value, dtype):
    def spoil(state):
        for name in state:
            state[name] = state[name].to(dtype)
        state["proj_out.bias"][0] = value

    source = rewritten(checkpoint, tmp_path / "bad", spoil)
    formats = {name: QUANTIZERS[name] for name in ("bf16", "fp8_e4m3fn", "q8_0")}
    with pytest.raises(DataError, match=r"proj_out\.bias holds a NaN or an infinity"):
        convert(open_flux(source), formats, tmp_path / "out", stem="m")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_weights_outside_the_range_of_a_type_are_clamped_and_counted(checkpoint, tmp_path):
    name = "transformer_blocks.0.attn.to_q.weight"

    def spoil(state):
        state[name][0, :3] = torch.tensor([1e6, -1e6, 1e-9])

    source = rewritten(checkpoint, tmp_path / "large", spoil)
    formats = {name: QUANTIZERS[name] for name in ("fp8_e4m3fn", "fp16")}
    files = convert(open_flux(source), formats, tmp_path / "out", stem="m")
    before = convert(open_flux(checkpoint), formats, tmp_path / "before", stem="m")
    joined = "double_blocks.0.img_attn.qkv.weight"
    stored = load_file(files["fp8_e4m3fn"][0].path)[joined]
    assert stored.float()[0, :3].tolist() == [448.0, -448.0, 0.0]
    assert load_file(files["fp16"][0].path)[joined][0, :2].tolist() == [65504.0, -65504.0]
    for kind in formats:
        loss, usual = files[kind][0].losses[joined], before[kind][0].losses[joined]
        assert loss.clipped == pytest.approx(2 / stored.numel())
        assert usual.clipped == 0
        assert 0 <= (loss.zeroed - usual.zeroed) * stored.numel() <= 1.01


def test_a_truncated_file_raises_a_one_line_error(checkpoint, tmp_path):
    bad = shutil.copytree(checkpoint, tmp_path / "bad")
    (bad / WEIGHTS).write_bytes((bad / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut at \d+ of \d+ bytes: fetch it again$") as caught:
        open_flux(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": this file is empty: fetch it again"),
        *(
            (
                data,
                " is no safetensors file, but an unknown file: give a diffusers directory, a .safetensors file or a .gguf file",
            )
            for data in (b"\x08", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"not weights at all")
        ),
    ],
)
def test_a_file_that_is_not_safetensors_raises_a_one_line_error(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_flux(path)
    assert str(caught.value) == f"{path}{message}"


def test_a_missing_and_an_unknown_tensor_are_named(checkpoint, tmp_path):
    lacking = rewritten(checkpoint, tmp_path / "lacking", lambda state: state.pop("proj_out.bias"))
    with pytest.raises(DataError, match=r"1 tensors are missing and 0 unknown; it lacks proj_out\.bias"):
        open_flux(lacking)
    more = rewritten(checkpoint, tmp_path / "more", lambda state: state.update(extra=torch.zeros(1)))
    with pytest.raises(DataError, match="0 tensors are missing and 1 unknown; it also holds extra"):
        open_flux(more)


def test_another_architecture_is_refused(tmp_path):
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"is no FLUX transformer: neither .* but conv_in"):
        open_flux(tmp_path / "other.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64])
def test_a_type_that_is_not_read_is_named_with_the_known_ones(checkpoint, tmp_path, dtype):
    def cast(state):
        state["proj_out.weight"] = state["proj_out.weight"].to(dtype)

    with pytest.raises(
        DataError,
        match=r"proj_out\.weight is stored as \w+; known are F32, F16, BF16, F8_E4M3, F8_E5M2: start from",
    ):
        open_flux(rewritten(checkpoint, tmp_path / "odd", cast))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"is no FLUX checkpoint .diffusion_pytorch_model\.safetensors is missing"
    ):
        open_flux(tmp_path)
    with pytest.raises(DataError, match=r"nothing is missing: check the path; a FLUX checkpoint is needed"):
        open_flux(tmp_path / "nothing")


def test_what_is_given_in_place_of_a_checkpoint_is_named_with_what_to_give(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(load_file(checkpoint / WEIGHTS), "flux.pt")
    torch.save({}, "old.ckpt", _use_new_zipfile_serialization=False)
    shutil.copytree(checkpoint, "variant")
    Path("variant", WEIGHTS).rename(Path("variant", "diffusion_pytorch_model.fp16.safetensors"))
    shutil.copytree(checkpoint, "marked")
    config = Path("marked/config.json")
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    Path("single").mkdir()
    shutil.copy(checkpoint / WEIGHTS, "single/flux1-dev.safetensors")
    Path("pointer.safetensors").write_bytes(POINTER)
    Path("page.safetensors").write_bytes(PAGE)
    for name in ("a-00001-of-00002.safetensors", "whole-00001-of-00001.safetensors"):
        shutil.copy(checkpoint / WEIGHTS, name)
    Path("sharded").mkdir()
    shutil.copy(checkpoint / WEIGHTS, "sharded/diffusion_pytorch_model-00001-of-00002.safetensors")
    writer = GGUFWriter("a-00002-of-00003.gguf", "flux")
    writer.add_tensor("a", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert open_flux(Path("whole-00001-of-00001.safetensors")).files == [
        Path("whole-00001-of-00001.safetensors")
    ]
    expected = {
        "a-00001-of-00002.safetensors": r"this is one shard of a checkpoint: give the directory",
        "sharded/diffusion_pytorch_model-00001-of-00002.safetensors": r"give the directory, sharded$",
        "a-00002-of-00003.gguf": r"one shard of a checkpoint, and GGUF is read as one file: join the shards",
        "sharded": r"it has shards, but not their index diffusion_pytorch_model\.safetensors\.index\.json: fetch",
        "huggingface.co/a/b": r"names the repository a/b of the hub: download it .* hf download a/b --local-dir",
        "a/b@main": r"hf download a/b --revision main --local-dir models/b",
        "flux.pt": r"flux\.pt is a pickle of PyTorch, .* can run code: convert it once, in Python: safetensors\.torch",
        "old.ckpt": r"old\.ckpt is a pickle of PyTorch, .* 'old\.safetensors'\), and give the new file",
        "black-forest-labs/FLUX.1-dev": r"if it is a repository of the hub, download it and give the directory: hf download",
        "https://huggingface.co/x/y.safetensors": r"^https://huggingface\.co/x/y\.safetensors is a URL: download what it names and give the path of the copy",
        "s3://bucket/y": r"^s3://bucket/y is a URL",
        "variant": r"model\.fp16\.safetensors is a variant of it, .* a single file can be given by its own path",
        "marked": r"config\.json: this begins with a byte order mark \(UTF-8\)",
        "single": r"\(diffusion_pytorch_model\.safetensors is missing\), but flux1-dev\.safetensors is there: give that file",
        "pointer.safetensors": r"this is a Git LFS pointer: run git lfs pull",
        "page.safetensors": r"this is an HTML page: ",
        "variant/config.json": r"variant/config\.json is no safetensors file, but a JSON text",
    }
    for given, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            open_flux(Path(given))
        assert "\n" not in str(caught.value)
        assert "codec" not in str(caught.value)


def test_a_variant_file_given_by_its_own_path_is_read_with_the_config_beside_it(
    checkpoint, expected, tmp_path
):
    shutil.copytree(checkpoint, tmp_path / "variant")
    given = (tmp_path / "variant" / WEIGHTS).rename(
        tmp_path / "variant/diffusion_pytorch_model.fp16.safetensors"
    )
    assert digests(given, tmp_path / "out")[1] == expected[1]
    assert json.loads((tmp_path / "out/bf16/config.json").read_text()) == json.loads(
        (checkpoint / "config.json").read_text()
    )


def in_shards(checkpoint, target):
    FluxTransformer2DModel.from_pretrained(checkpoint).save_pretrained(target, max_shard_size="12MB")
    index = target / f"{WEIGHTS}.index.json"
    return index, json.loads(index.read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names, shards: names.update({"x": ["list"]}), "x should be in a .safetensors file beside it"),
        (
            lambda names, shards: names.update({"x": "../up.safetensors"}),
            "x should be in a .safetensors file beside it",
        ),
        (
            lambda names, shards: names.update({"x": "gone.safetensors"}),
            "are missing, first gone.safetensors",
        ),
        (lambda names, shards: names.clear(), "has no weight_map from tensors to files"),
        (
            lambda names, shards: names.update({"proj_out.bias": shards[-1]}),
            "do not agree about the tensor proj_out.bias",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(checkpoint, tmp_path, change, message):
    index, content = in_shards(checkpoint, tmp_path / "shards")
    names = content["weight_map"]
    shards = sorted(set(names.values()))
    if names["proj_out.bias"] == shards[-1]:
        shards.reverse()
    change(names, shards)
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_flux(tmp_path / "shards")
    assert "\n" not in str(caught.value)
