"""A LoRA is copied only if the merged checkpoint was made from it."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from srpo_core.artifacts import LORA_FILE, sha256
from srpo_core.errors import DataError
from srpo_core.quantizers import open_flux
from srpo_core.quantizers.lora import carry_lora
from srpo_core.weights.files import WEIGHTS

LAYERS = ("transformer_blocks.1.attn.to_q", "single_transformer_blocks.0.proj_mlp")


@pytest.fixture(scope="module")
def merged(checkpoint, tmp_path_factory):
    """The checkpoint merged with a rank-4 adapter on two layers, as a diffusers directory with the LoRA file."""
    directory = tmp_path_factory.mktemp("merged")
    torch.manual_seed(3)
    model = FluxTransformer2DModel.from_pretrained(checkpoint)
    tensors = {}
    with torch.no_grad():
        for layer in LAYERS:
            weight = model.get_submodule(layer).weight
            down, up = torch.randn(4, weight.shape[1]) * 0.01, torch.randn(weight.shape[0], 4) * 0.01
            weight.add_(up @ down)
            tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    model.save_pretrained(directory)
    save_file(tensors, directory / LORA_FILE)
    return directory


def carry(source, checkpoint, merged, target):
    return carry_lora(source, open_flux(checkpoint), open_flux(merged), target)


def changed(merged, tmp_path, change):
    tensors = load_file(merged / LORA_FILE)
    change(tensors)
    save_file(tensors, tmp_path / LORA_FILE)
    return tmp_path / LORA_FILE


def test_a_lora_is_copied_byte_for_byte_and_described(checkpoint, merged, tmp_path):
    known = carry(merged / LORA_FILE, checkpoint, merged, tmp_path / "out" / LORA_FILE)
    assert known["sha256"] == sha256(merged / LORA_FILE) == sha256(tmp_path / "out" / LORA_FILE)
    assert (known["rank"], known["layers"]) == (4, 2)
    assert known["deviation"] < 1e-3


def test_a_lora_of_another_checkpoint_is_refused(checkpoint, merged, tmp_path):
    def double(tensors):
        tensors[f"transformer.{LAYERS[0]}.lora_B.weight"] *= 2

    with pytest.raises(DataError, match=r"differ from the merged checkpoint by 0\.5 of the change"):
        carry(changed(merged, tmp_path, double), checkpoint, merged, tmp_path / "out" / LORA_FILE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"transformer.{LAYERS[0]}.lora_B.weight"), "to_q without its other matrix"),
        (lambda t: t.update({"lora_unet_x.lora_up.weight": torch.zeros(1)}), "it holds lora_unet_x"),
        (lambda t: t[f"transformer.{LAYERS[0]}.lora_A.weight"].fill_(float("nan")), "holds a NaN"),
        (
            lambda t: t.update(
                {f"transformer.no.layer.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
            ),
            "no LoRA of this model",
        ),
    ],
)
def test_a_file_that_is_not_a_lora_in_diffusers_naming_raises_an_error_with_the_reason(
    checkpoint, merged, tmp_path, change, message
):
    with pytest.raises(DataError, match=message):
        carry(changed(merged, tmp_path, change), checkpoint, merged, tmp_path / "out" / LORA_FILE)


def test_a_lora_file_that_is_not_safetensors_raises_a_one_line_error(checkpoint, merged, tmp_path):
    (tmp_path / LORA_FILE).write_bytes((merged / WEIGHTS).read_bytes()[:100])
    with pytest.raises(DataError, match="is no LoRA of this model") as caught:
        carry(tmp_path / LORA_FILE, checkpoint, merged, tmp_path / "out" / LORA_FILE)
    assert "\n" not in str(caught.value)
