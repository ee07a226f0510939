"""Contract of every entry of the registry `quantizers`, and the figures of each format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.quantizers import QUANTIZERS, WEIGHTS, chosen_quantizers
from srpo_core.quantizers.checkpoint_files import empty_model
from srpo_core.quantizers.fp8 import HIGH_PRECISION, linear_weights

TINY = Path(__file__).resolve().parents[2] / "assets/tiny/family/base/transformer"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A FLUX transformer of hidden width 256 with random float32 weights, as facts/quantization measured."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    directory = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(directory)
    return directory


def forward(weights, directory):
    config = FluxTransformer2DModel.load_config(directory)
    model = FluxTransformer2DModel.from_config(config)
    model.load_state_dict(weights)
    torch.manual_seed(1)
    batch, tokens, words = 2, 16, 6
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(batch, tokens, config["in_channels"]),
            encoder_hidden_states=torch.randn(batch, words, config["joint_attention_dim"]),
            pooled_projections=torch.randn(batch, config["pooled_projection_dim"]),
            timestep=torch.tensor([1.0, 0.5]),
            guidance=torch.full((batch,), 3.5),
            img_ids=torch.zeros(tokens, 3),
            txt_ids=torch.zeros(words, 3),
            return_dict=False,
        )[0]


def relative_error(name, source, target):
    QUANTIZERS[name].write(source, target)
    exact = forward(load_file(source / WEIGHTS), source)
    rounded = forward(QUANTIZERS[name].read(target), source)
    return float((rounded - exact).norm() / exact.norm())


def rewritten(source, target, change):
    """A copy of a checkpoint with its tensors changed by `change(state)`."""
    shutil.copytree(source, target)
    state = load_file(source / WEIGHTS)
    change(state)
    save_file(state, target / WEIGHTS, {"format": "pt"})
    return target


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_format_loads_in_diffusers_with_every_tensor_and_shape(name, checkpoint, tmp_path):
    QUANTIZERS[name].write(checkpoint, tmp_path)
    model = FluxTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
    expected = load_file(checkpoint / WEIGHTS)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }
    assert QUANTIZERS[name].read(tmp_path).keys() == expected.keys()


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_format_is_written_with_the_same_bytes_twice_and_leaves_no_other_file(
    name, checkpoint, tmp_path
):
    for copy in ("first", "second"):
        QUANTIZERS[name].write(checkpoint, tmp_path / copy)
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", WEIGHTS]
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_format_names_the_tensor_that_holds_a_nan(name, checkpoint, tmp_path):
    def spoil(state):
        state["proj_out.bias"][0] = float("nan")

    with pytest.raises(ArtifactError, match=r"proj_out\.bias holds a NaN"):
        QUANTIZERS[name].write(rewritten(checkpoint, tmp_path / "bad", spoil), tmp_path / "out")
    assert not (tmp_path / "out" / WEIGHTS).exists()
    assert not list(tmp_path.glob("out/.*"))


def test_a_bf16_release_is_close_to_float32(checkpoint, tmp_path):
    assert 1e-3 < relative_error("bf16", checkpoint, tmp_path) < 1e-2


def test_an_fp8_release_is_within_a_few_percent_of_float32(checkpoint, tmp_path):
    assert 1e-2 < relative_error("fp8_e4m3fn", checkpoint, tmp_path) < 8e-2


def test_the_tiny_base_is_stored_in_bf16_so_bf16_loses_nothing_and_fp8_a_little(tmp_path):
    assert relative_error("bf16", TINY, tmp_path / "bf16") == 0
    assert 1e-2 < relative_error("fp8_e4m3fn", TINY, tmp_path / "fp8") < 8e-2


def test_keeping_the_first_and_last_layers_in_high_precision_makes_fp8_better(checkpoint, tmp_path):
    kept = relative_error("fp8_e4m3fn", checkpoint, tmp_path)
    state = QUANTIZERS["bf16"].read(tmp_path)
    everything = {
        name: value.to(torch.float8_e4m3fn).float() if value.dim() == 2 else value
        for name, value in state.items()
    }
    exact = forward(load_file(checkpoint / WEIGHTS), checkpoint)
    worse = float((forward(everything, checkpoint) - exact).norm() / exact.norm())
    assert kept < 0.9 * worse


def test_fp8_stores_exactly_the_linear_weights_of_the_blocks_in_eight_bits(checkpoint, tmp_path):
    QUANTIZERS["fp8_e4m3fn"].write(checkpoint, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    eight = {name for name, value in stored.items() if value.dtype == torch.float8_e4m3fn}
    assert eight == set(linear_weights(empty_model(checkpoint)))
    assert all(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in eight)
    assert all(stored[name].dim() == 2 for name in eight)
    assert {value.dtype for name, value in stored.items() if name not in eight} == {torch.bfloat16}
    assert any(name.split(".")[0] in HIGH_PRECISION and stored[name].dim() == 2 for name in stored)
    assert not any(name.endswith(("norm_q.weight", "norm_k.weight")) for name in eight)


def test_what_is_too_large_for_fp8_is_clamped_and_counted_and_what_is_too_small_too(checkpoint, tmp_path):
    name = "transformer_blocks.0.attn.to_q.weight"

    def spoil(state):
        state[name][0, :3] = torch.tensor([1e4, -1e4, 1e-9])

    source = rewritten(checkpoint, tmp_path / "large", spoil)
    before = QUANTIZERS["fp8_e4m3fn"].write(checkpoint, tmp_path / "before")
    loss = QUANTIZERS["fp8_e4m3fn"].write(source, tmp_path / "out")
    stored = load_file(tmp_path / "out" / WEIGHTS)
    weights = sum(value.numel() for value in stored.values() if value.dtype == torch.float8_e4m3fn)
    assert stored[name].float()[0, :3].tolist() == [448.0, -448.0, 0.0]
    assert loss.clipped == pytest.approx(2 / weights)
    assert abs((loss.zeroed - before.zeroed) * weights - 1) <= 3  # the three were perhaps zeroed before


def test_the_streamed_file_equals_what_the_safetensors_library_writes(checkpoint, tmp_path):
    QUANTIZERS["fp8_e4m3fn"].write(checkpoint, tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / "library", {"format": "pt"})

    def data(path):
        raw = path.read_bytes()
        return raw[8 + int.from_bytes(raw[:8], "little") :]

    assert data(tmp_path / WEIGHTS) == data(tmp_path / "library")


def test_a_checkpoint_in_shards_gives_the_same_bytes_as_one_in_one_file(checkpoint, tmp_path):
    model = FluxTransformer2DModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    QUANTIZERS["bf16"].write(checkpoint, tmp_path / "one")
    QUANTIZERS["bf16"].write(tmp_path / "shards", tmp_path / "many")
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "many" / WEIGHTS).read_bytes()


def test_a_truncated_checkpoint_is_one_clear_line(checkpoint, tmp_path):
    bad = shutil.copytree(checkpoint, tmp_path / "bad")
    (bad / WEIGHTS).write_bytes((bad / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        QUANTIZERS["bf16"].write(bad, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_tensor_is_named(checkpoint, tmp_path):
    bad = rewritten(checkpoint, tmp_path / "bad", lambda state: state.pop("proj_out.bias"))
    with pytest.raises(ArtifactError, match=r"1 differ, first proj_out\.bias"):
        QUANTIZERS["bf16"].write(bad, tmp_path / "out")


def test_a_config_of_an_unknown_class_is_named(checkpoint, tmp_path):
    bad = shutil.copytree(checkpoint, tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"_class_name": "NoSuchModel"}))
    with pytest.raises(ArtifactError, match="'NoSuchModel' is no class of diffusers"):
        QUANTIZERS["fp8_e4m3fn"].write(bad, tmp_path / "out")


def test_names_of_formats_ignore_letter_case_and_an_unknown_one_lists_the_known():
    assert list(chosen_quantizers(["BF16", "fp8_E4M3fn"])) == ["bf16", "fp8_e4m3fn"]
    with pytest.raises(ConfigError, match="known are bf16, fp8_e4m3fn"):
        chosen_quantizers(["q4_k"])
    with pytest.raises(ConfigError, match="names bf16 twice"):
        chosen_quantizers(["bf16", "BF16"])
