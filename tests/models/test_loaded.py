"""How a base is held and decodes while it generates: matrices in bfloat16, blocks offloaded, slices and tiles."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.config import GenerateSettings, load_settings
from srpo_core.errors import ArtifactError
from srpo_core.fidelity.image_distance import psnr
from srpo_core.models import LoadedBase, files_to_load, load_base
from srpo_core.protocols import Condition

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_settings(ROOT / "profiles/tiny.yaml").model


def settings(*, autocast=False, decode="whole"):
    return GenerateSettings(
        num_inference_steps=4, guidance_scale=3.5, batch_size=3, autocast=autocast, tf32=False, decode=decode
    )


def inputs(base):
    """A condition of three prompts, and noise (3, S, C)."""
    generator = torch.Generator().manual_seed(0)
    config = base.transformer.config
    condition = Condition(
        {
            "prompt_embeds": torch.randn(3, 12, config.joint_attention_dim, generator=generator),
            "pooled_prompt_embeds": torch.randn(3, config.pooled_projection_dim, generator=generator),
        }
    )
    return condition, torch.randn(3, *base.latent_shape, generator=generator)


def images(base, *, autocast=False):
    with base.autocast(enabled=autocast):
        return base.generate(*inputs(base), num_inference_steps=4, guidance_scale=3.5)


def test_matrices_in_bfloat16_generate_the_images_of_float32_weights_under_autocast(model):
    whole, half = load_base(model), load_base(model, generate=settings(autocast=True))
    sizes = {torch.bfloat16: 0, torch.float32: 0}
    for parameter in half.transformer.parameters():
        sizes[parameter.dtype] += parameter.numel()
    assert sizes[torch.float32] < 0.01 * sizes[torch.bfloat16], "only the scales of norms stay in float32"
    norms = {name: value for name, value in half.transformer.named_parameters() if "norm_q" in name}
    exact = dict(whole.transformer.named_parameters())
    assert all(torch.equal(value, exact[name]) for name, value in norms.items())
    ours = images(half, autocast=True)
    assert torch.equal(ours, images(whole, autocast=True))
    assert psnr(ours, images(whole)).min() > 20


def test_without_autocast_every_weight_is_in_float32(model):
    base = load_base(model, generate=settings())
    assert {parameter.dtype for parameter in base.transformer.parameters()} == {torch.float32}


def test_an_offloaded_transformer_generates_the_same_images(model):
    expected = images(load_base(model))
    with closing(LoadedBase(model, settings(), offload=True)) as loaded:
        base = loaded.as_model(None, CPU)
        blocks = [*base.transformer.transformer_blocks, *base.transformer.single_transformer_blocks]
        assert all("forward" in vars(block) for block in blocks), "each block is called through a hook"
        assert base.device == CPU
        assert torch.equal(images(base), expected)


@pytest.mark.parametrize(
    ("decode", "calls", "side", "least_psnr"), [("slices", 3, 16, 100), ("tiles", 3 * 9, 8, 20)]
)
def test_slices_and_tiles_decode_less_at_once(model, decode, calls, side, least_psnr):
    """Tiles change the group norms: tiles of 8 latent pixels, as here, more than those of 48 at full size."""
    model = model.model_copy(update={"height": 128, "width": 128})
    base, whole = load_base(model, generate=settings(decode=decode)), load_base(model)
    condition, noise = inputs(base)
    latents = base.generate_latents(condition, noise, num_inference_steps=4, guidance_scale=3.5)
    shapes = []
    base.vae.decoder.register_forward_hook(lambda _module, given, _output: shapes.append(given[0].shape))
    parts = base.decode(latents).clamp(0, 1)
    assert len(shapes) == calls
    assert {shape[0] for shape in shapes} == {1}
    assert max(max(shape[2:]) for shape in shapes) == side
    assert psnr(parts, whole.decode(latents).clamp(0, 1)).min() > least_psnr


def test_tiles_of_full_size_images_are_about_half_as_long_and_fit_together(model):
    base = load_base(
        model.model_copy(update={"height": 720, "width": 480}), generate=settings(decode="tiles")
    )
    assert base.vae.tile_latent_min_size == 48, "720 pixels are 90 latent pixels"
    assert base.vae.tile_sample_min_size == 8 * 48
    assert (base.vae.tile_latent_min_size * base.vae.tile_overlap_factor).is_integer()


def test_matrices_converted_in_place_generate_the_same_images_and_take_new_weights_exactly(model):
    base, whole = load_base(model), load_base(model)
    base.hold_matrices(torch.bfloat16)
    assert torch.equal(images(base, autocast=True), images(whole, autocast=True))
    base.hold_matrices(torch.float32).transformer.load_state_dict(whole.transformer.state_dict())
    assert torch.equal(images(base), images(whole))


@pytest.fixture
def trained(model, tmp_path):
    """Return a directory of weights that differ from the base's, with its config.json."""
    source = ROOT / model.path / "transformer"
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: (tensor.float() + 0.05 * torch.randn(tensor.shape, generator=generator)).contiguous()
        for name, tensor in tensors.items()
    }
    directory = tmp_path / "trained"
    directory.mkdir()
    save_file(changed, directory / "diffusion_pytorch_model.safetensors")
    shutil.copyfile(source / "config.json", directory / "config.json")
    return directory


@pytest.mark.parametrize("autocast", [False, True])
def test_another_models_weights_are_read_into_the_transformer_in_memory(model, trained, autocast):
    given = settings(autocast=autocast)
    expected = {
        path: images(load_base(model, path, generate=given), autocast=autocast) for path in (None, trained)
    }
    assert not torch.equal(expected[None], expected[trained])
    with closing(LoadedBase(model, given, offload=False)) as loaded:
        transformer = loaded.as_model(None, CPU).transformer
        for path in (trained, None, trained):
            base = loaded.as_model(path, CPU)
            assert base.transformer is transformer, "no second copy"
            assert torch.equal(images(base, autocast=autocast), expected[path])


def test_a_base_is_loaded_anew_after_weights_that_are_damaged(model, trained):
    expected = images(load_base(model))
    weights = trained / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("proj_out.weight"))
    save_file(tensors | {name: tensors[name].T.contiguous()}, weights)
    with closing(LoadedBase(model, settings(), offload=False)) as loaded:
        loaded.as_model(None, CPU)
        with pytest.raises(ArtifactError, match="trained"):
            loaded.as_model(trained, CPU)
        assert torch.equal(images(loaded.as_model(None, CPU)), expected)


@pytest.mark.parametrize("given", ["base", "trained"])
def test_the_files_to_load_are_enough_for_a_host_that_has_no_others(model, trained, tmp_path, given):
    transformer = trained if given == "trained" else None
    expected = images(load_base(model, transformer))
    copy = tmp_path / "copy"
    for file in files_to_load(model, transformer):
        target = copy / (file if not file.is_absolute() else Path("trained") / file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    sent = model.model_copy(update={"path": str(copy / model.path)})
    loaded = load_base(sent, None if transformer is None else copy / "trained")
    assert not (copy / model.path / "text_encoder").exists()
    assert torch.equal(images(loaded), expected)
