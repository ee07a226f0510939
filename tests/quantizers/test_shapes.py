"""Names and shapes of a checkpoint against its config.json."""

import inspect
import json
import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from srpo_core.errors import DataError
from srpo_core.quantizers import open_flux
from srpo_core.quantizers.key_map import Architecture, bfl_names
from srpo_core.quantizers.shapes import CLASS, DEFAULTS, widths_of_config
from srpo_core.weights.files import CONFIG, WEIGHTS

SMALL = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "in_channels": 4,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": True,
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "num_layers": st.integers(0, 2),
            "num_single_layers": st.integers(0, 2),
            "num_attention_heads": st.integers(1, 3),
            "in_channels": st.integers(1, 9),
            "out_channels": st.none() | st.integers(1, 9),
            "patch_size": st.integers(1, 2),
            "joint_attention_dim": st.integers(1, 40),
            "pooled_projection_dim": st.integers(1, 40),
            "guidance_embeds": st.booleans(),
        }
    ),
    st.sampled_from([(2, 2, 4), (4, 6, 6), (16, 56, 56)]),
)
def test_names_and_shapes_are_those_of_the_class_of_diffusers(values, axes):
    config = {**values, "axes_dims_rope": axes, "attention_head_dim": sum(axes)}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    architecture = Architecture(config["num_layers"], config["num_single_layers"], config["guidance_embeds"])
    widths = widths_of_config({"_class_name": CLASS, **config}, architecture, "the test")
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names = [name for joint in architecture.joints() for name in joint.diffusers]
    assert sorted(names) == sorted(expected)
    assert {name: widths.shape(name) for name in names} == expected


def test_the_defaults_are_those_of_diffusers():
    parameters = inspect.signature(FluxTransformer2DModel.__init__).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == dict(DEFAULTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("small")
    FluxTransformer2DModel(**SMALL).save_pretrained(directory)
    return directory


@pytest.fixture
def changed(small, tmp_path):
    """Return a function that writes the small model with changed tensors or another config.json."""

    def change(tensors=lambda _: None, bfl=False, **config):
        target = tmp_path / "changed"
        shutil.copytree(small, target)
        state = load_file(target / WEIGHTS)
        tensors(state)
        given = json.loads((target / CONFIG).read_text())
        (target / CONFIG).write_text(json.dumps({**given, **config}))
        if bfl:
            rows = bfl_names({name: tuple(value.shape) for name, value in state.items()})
            state = {
                name: torch.cat([state[piece.tensor][piece.start : piece.stop] for piece in pieces])
                for name, pieces in rows.items()
            }
        save_file(state, target / WEIGHTS, {"format": "pt"})
        return target

    return change


def transpose(name):
    return lambda state: state.update({name: state[name].T.contiguous()})


def test_the_small_model_is_read_with_its_config(changed):
    assert open_flux(changed()).config["num_layers"] == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "proj_out.weight",
            r"proj_out\.weight has the shape \[32, 4\], and by config\.json it should be \[4, 32\]: ",
        ),
        (
            "transformer_blocks.0.ff.net.0.proj.weight",
            r"net\.0\.proj\.weight has the shape \[32, 128\], and by config\.json it should be \[128, 32\]: ",
        ),
        (
            "x_embedder.weight",
            r"x_embedder\.weight has the shape \[4, 32\], and by config\.json it should be \[32, 4\]: ",
        ),
    ],
)
def test_a_transposed_weight_is_named_with_the_found_and_the_expected_shape(changed, name, message):
    with pytest.raises(DataError, match=message) as caught:
        open_flux(changed(transpose(name)))
    assert "\n" not in str(caught.value)


def test_a_tensor_without_dimensions_is_named(changed):
    with pytest.raises(
        DataError, match=r"proj_out\.bias has the shape \[\], and by config\.json it should be \[4\]"
    ):
        open_flux(changed(lambda state: state.update({"proj_out.bias": torch.tensor(1.0)})))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "SD3Transformer2DModel"},
            "is of 'SD3Transformer2DModel' and not of FluxTransformer2DModel",
        ),
        ({"_class_name": None}, "is of None and not of FluxTransformer2DModel"),
        (
            {"_class_name": None, "architectures": ["CLIPTextModel"]},
            "is of ['CLIPTextModel'] and not of Flux",
        ),
        ({"num_layers": 19}, "has num_layers 19, and the weights have 1"),
        ({"num_layers": 10**12}, "has num_layers 1000000000000, and the weights have 1"),
        ({"num_single_layers": 0}, "has num_single_layers 0, and the weights have 1"),
        ({"guidance_embeds": False}, "has guidance_embeds False, and the weights have True"),
        ({"num_attention_heads": 4}, "has the shape [32, 4], and by config.json it should be [64, 4]"),
        (
            {"joint_attention_dim": 25},
            "context_embedder.weight has the shape [32, 24], and by config.json it should be [32, 25]",
        ),
        ({"in_channels": "64"}, "has in_channels '64': it needs an integer of at least 1"),
        ({"in_channels": 0}, "has in_channels 0: it needs an integer of at least 1"),
        ({"patch_size": True}, "has patch_size True: it needs an integer of at least 1"),
        (
            {"out_channels": 2},
            "proj_out.weight has the shape [4, 32], and by config.json it should be [2, 32]",
        ),
        ({"out_channels": []}, "has out_channels []: it needs an integer of at least 1, or null"),
        ({"axes_dims_rope": [4, 6]}, "has axes_dims_rope [4, 6], whose sum is not attention_head_dim 16"),
        ({"axes_dims_rope": 16}, "has axes_dims_rope 16: it needs a list of integers above 0"),
    ],
)
def test_a_config_of_other_weights_is_refused_with_what_differs(changed, config, message):
    with pytest.raises(DataError) as caught:
        open_flux(changed(**config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_file_without_config_is_compared_with_its_first_layers(changed, tmp_path):
    directory = changed(bfl=True)
    single = shutil.move(directory / WEIGHTS, tmp_path / "flux.safetensors")
    assert open_flux(single).config is None
    whole = load_file(single)
    wrong = {
        "double_blocks.0.img_mod.lin.weight": ([32, 192], [192, 32]),
        "single_blocks.0.linear2.weight": ([160, 32], [32, 160]),
    }
    for name, (found, expected) in wrong.items():
        save_file({**whole, name: whole[name].T.contiguous()}, single)
        with pytest.raises(DataError) as caught:
            open_flux(single)
        assert (
            f"{name} has the shape {found}, and by the widths of its first layers it should be {expected}"
            in str(caught.value)
        )
    for name, value, message in (
        ("img_in.weight", torch.zeros(32), "img_in.weight has the shape [32], and a matrix is expected"),
        ("img_in.weight", torch.zeros(0, 4), "img_in.weight has the shape [0, 4], and a matrix is expected"),
        (
            "double_blocks.0.img_attn.norm.query_norm.scale",
            torch.zeros(17),
            "heads of width [17] do not divide the hidden width 32",
        ),
    ):
        save_file({**whole, name: value}, single)
        with pytest.raises(DataError) as caught:
            open_flux(single)
        assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 100_000])
def test_a_damaged_config_in_the_metadata_is_refused(changed, text):
    directory = changed()
    state = load_file(directory / WEIGHTS)
    single = directory / "single.safetensors"
    save_file(state, single, {"srpo_config": text})
    with pytest.raises(DataError, match=r"srpo_config in its metadata is no JSON object"):
        open_flux(single)
