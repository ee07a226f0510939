"""Compare the key map with the model and the converter of diffusers."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from srpo_core.errors import DataError
from srpo_core.quantizers.key_map import (
    Architecture,
    architecture_of,
    bfl_names,
    diffusers_names,
    require_exact,
)

DEV = {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}


def shapes_of_flux(**config):
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def shape_of(rows, shapes):
    return (sum(piece.stop - piece.start for piece in rows), *shapes[rows[0].tensor][1:])


@pytest.fixture(scope="module")
def dev():
    return shapes_of_flux(**DEV)


def test_flux1_dev_has_780_tensors_in_the_original_naming(dev):
    assert len(bfl_names(dev)) == 780
    assert len(dev) == 1160


def test_the_two_maps_are_inverse_for_every_tensor_of_flux1_dev(dev):
    there = bfl_names(dev)
    back = diffusers_names({name: shape_of(rows, dev) for name, rows in there.items()})
    assert back.keys() == dev.keys()
    for name, shape in dev.items():
        origin = [row for piece in back[name] for row in _rows_of(piece, there)]
        assert origin == [(name, row) for row in range(shape[0])]


def _rows_of(piece, there):
    stacked = [(part.tensor, row) for part in there[piece.tensor] for row in range(part.start, part.stop)]
    return stacked[piece.start : piece.stop]


def test_shapes_match_the_original_model(dev):
    there = bfl_names(dev)
    expected = {
        "img_in.weight": (3072, 64),
        "guidance_in.in_layer.weight": (3072, 256),
        "double_blocks.18.txt_attn.qkv.weight": (9216, 3072),
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "double_blocks.0.img_mod.lin.bias": (18432,),
        "single_blocks.37.linear1.weight": (21504, 3072),
        "single_blocks.37.linear1.bias": (21504,),
        "single_blocks.0.linear2.weight": (3072, 15360),
        "final_layer.adaLN_modulation.1.weight": (6144, 3072),
    }
    assert {name: shape_of(there[name], dev) for name in expected} == expected


def test_diffusers_own_converter_splits_a_file_in_the_same_way():
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    # the converter supports only hidden width 3072; rows are numbered, and there are few columns
    shapes = shapes_of_flux(num_layers=1, num_single_layers=1, guidance_embeds=True)
    state = {
        name: torch.arange(shape[0]).float() + index * 1e6
        for index, (name, shape) in enumerate(shapes.items())
    }
    joined = {
        name: torch.cat([state[piece.tensor][piece.start : piece.stop] for piece in rows])
        for name, rows in bfl_names(shapes).items()
    }
    theirs = convert_flux_transformer_checkpoint_to_diffusers(joined)
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[name], state[name]) for name in state)


def test_a_model_without_guidance_embedding_is_recognized():
    shapes = shapes_of_flux(num_layers=2, num_single_layers=3, guidance_embeds=False)
    there = bfl_names(shapes)
    assert architecture_of(shapes, bfl=False) == Architecture(2, 3, guidance=False)
    assert architecture_of(there, bfl=True) == Architecture(2, 3, guidance=False)
    assert not any(name.startswith("guidance_in") for name in there)


def test_a_missing_and_an_unknown_tensor_are_named():
    with pytest.raises(DataError, match="1 tensors are missing and 0 unknown; it lacks b"):
        require_exact(["a"], ["a", "b"], "here")
    with pytest.raises(DataError, match="0 tensors are missing and 1 unknown; it also holds c"):
        require_exact(["a", "c"], ["a"], "here")
