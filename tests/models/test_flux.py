from pathlib import Path

import pytest
import torch

from srpo_core.algorithm.rollout import rollout
from srpo_core.config import load_settings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.models import encode_image_batches, encode_prompts, latent_shape, load_base, load_transformer
from srpo_core.models.flux import image_ids, pack, unpack
from srpo_core.randomness import keyed_noise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings():
    model = load_settings(ROOT / "profiles/tiny.yaml").model
    return model.model_copy(update={"path": str(ROOT / model.path)})


@pytest.fixture(scope="module")
def base(settings):
    return load_base(settings)


@pytest.fixture(scope="module")
def condition(settings):
    return encode_prompts(settings, ["red apple", "crab", "tiger face"], batch_size=2)


def test_unpacking_reverses_packing():
    latents = torch.randn(2, 16, 6, 10)
    tokens = pack(latents)
    assert tokens.shape == (2, 15, 64)
    assert torch.equal(unpack(tokens, 6, 10), latents)


def test_the_channels_of_a_token_are_2x2_patches_of_each_latent_channel():
    latents = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    assert pack(latents)[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_position_ids_count_rows_and_columns():
    assert image_ids(4, 6).tolist() == [[0, r, c] for r in range(2) for c in range(3)]


def test_a_prompt_has_the_same_embedding_alone_and_in_a_batch(settings, condition):
    alone = encode_prompts(settings, ["tiger face"], batch_size=1)
    assert alone.tensors.keys() == {"prompt_embeds", "pooled_prompt_embeds"}
    for name, tensor in alone.tensors.items():
        assert torch.allclose(tensor, condition.tensors[name][2:], atol=1e-5)


def test_our_rollout_generates_the_same_images_as_the_pipeline(base, condition):
    """The same sigmas in both; ours truncates the time input to thousandths, hence the tolerance."""
    noise = torch.stack([keyed_noise(base.latent_shape, 0, "test", row) for row in range(3)])
    images = base.generate(condition, noise, num_inference_steps=16, guidance_scale=3.5)
    base.architecture.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 16, 16).tolist(), mu=0.4594)
    latents = rollout(
        base.velocity, noise, condition, sigmas=base.architecture.scheduler.sigmas, guidance=3.5
    )
    ours = base.decode(latents).clamp(0, 1)
    assert float((ours - images).detach().abs().mean()) < 0.01


def test_autocast_images_are_close_to_float32_and_autocast_ends_with_its_context(base, condition):
    noise = torch.stack([keyed_noise(base.latent_shape, 0, "test", row) for row in range(3)])

    def generated():
        return base.generate(condition, noise, num_inference_steps=4, guidance_scale=3.5)

    exact = generated()
    with base.autocast(enabled=True):
        rough = generated()
        with base.autocast(enabled=False):
            assert torch.equal(generated(), exact)
    between = float((exact - exact.roll(1, 0)).abs().mean())
    assert 0 < float((rough - exact).abs().mean()) < between / 5
    assert torch.equal(generated(), exact)


def test_a_base_loads_the_weights_of_another_directory(settings, base, tmp_path):
    with torch.no_grad():
        other = load_base(settings)
        other.transformer.proj_out.bias.add_(1.0)
    other.transformer.save_pretrained(tmp_path)
    found = load_base(settings, tmp_path).transformer.state_dict()
    given = other.transformer.state_dict()
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())


def test_a_base_without_guidance_embedding_such_as_schnell_ignores_the_guidance_scale(settings, condition):
    base = load_base(settings)
    config = {**base.transformer.config, "guidance_embeds": False}
    base.transformer = type(base.transformer).from_config(config).requires_grad_(requires_grad=False)
    noise = torch.stack([keyed_noise(base.latent_shape, 0, "test", row) for row in range(3)])
    times = torch.full((3,), 0.5)
    first, second = (base.velocity(noise, times, guidance, condition) for guidance in (1.0, 3.5))
    assert torch.equal(first, second)


def test_decoding_passes_gradients_to_the_latents_and_none_to_the_vae(base):
    latents = torch.randn(1, *base.latent_shape, requires_grad=True)
    base.decode(latents).sum().backward()
    assert float(latents.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in base.vae.parameters())


def test_decoding_the_latents_of_images_recovers_the_images(settings, base, condition):
    noise = torch.stack([keyed_noise(base.latent_shape, 0, "test", row) for row in range(3)])
    images = base.generate(condition, noise, num_inference_steps=16, guidance_scale=3.5)
    batches = encode_image_batches(settings, [images[:2], images[2:]], device=torch.device("cpu"))
    latents = torch.cat(list(batches))
    assert latents.shape == noise.shape
    assert latents.shape[1:] == latent_shape(settings)
    error = float((base.decode(latents).detach().clamp(0, 1) - images).abs().mean())
    between = float((images - images.roll(1, 0)).abs().mean())
    assert error < between / 5


def test_a_missing_base_is_named(settings, tmp_path):
    with pytest.raises(ArtifactError, match=r"no model_index\.json"):
        load_base(settings.model_copy(update={"path": str(tmp_path)}))


def test_an_unknown_base_lists_the_known_ones(settings):
    with pytest.raises(ConfigError, match="unknown base model 'sdxl': known are flux"):
        load_base(settings.model_copy(update={"base": "sdxl"}))


def test_damaged_weights_are_named_in_one_line(settings, tmp_path):
    source = Path(settings.path) / "transformer"
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    whole = (source / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"cut at \d+ of \d+ bytes: fetch it again$") as caught:
        load_transformer(settings, tmp_path)
    assert "\n" not in str(caught.value)
