from pathlib import Path

import pytest
import torch

from srpo_core.config import LoraSettings, load_settings
from srpo_core.errors import ConfigError
from srpo_core.models import load_base
from srpo_core.models.lora import add_lora, initial_weights, initialize_lora, merge_lora, write_lora
from srpo_core.training.state import trained_parameters

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["to_q", "to_v", "net.2", "proj_out"]
SETTINGS = LoraSettings(rank=4, alpha=8, targets=TARGETS, frozen="float32")


@pytest.fixture
def base(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_base(load_settings(Path("profiles/tiny.yaml")).model)


@pytest.fixture
def adapted(base):
    add_lora(base.transformer, SETTINGS)
    initialize_lora(base.transformer, seed=0)
    return base


def with_random_adapters(transformer):
    """Change the adapters, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(transformer).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def velocity(base):
    generator = torch.Generator().manual_seed(0)
    config = base.transformer.config
    from srpo_core.protocols import Condition

    condition = Condition(
        {
            "prompt_embeds": torch.randn(2, 12, config.joint_attention_dim, generator=generator),
            "pooled_prompt_embeds": torch.randn(2, config.pooled_projection_dim, generator=generator),
        }
    )
    latents = torch.randn(2, *base.latent_shape, generator=generator)
    with torch.no_grad():
        return base.velocity(latents, torch.tensor([0.3, 0.8]), 3.5, condition)


def test_new_adapters_change_nothing_and_only_they_are_trained(base):
    before = velocity(base)
    add_lora(base.transformer, SETTINGS)
    initialize_lora(base.transformer, seed=0)
    assert torch.equal(velocity(base), before)
    names = trained_parameters(base.transformer)
    assert names
    assert all(".lora_" in name for name in names)
    assert not any(name.startswith("proj_out") for name in names), "only layers within blocks"


def test_merged_weights_give_the_same_output_as_base_and_adapters(adapted, monkeypatch):
    with_random_adapters(adapted.transformer)
    with_adapters = velocity(adapted)
    merged = load_base(load_settings(Path("profiles/tiny.yaml")).model)
    plain = velocity(merged)
    merge_lora(merged.transformer, trained_parameters(adapted.transformer), SETTINGS)
    assert torch.allclose(velocity(merged), with_adapters, atol=1e-5)
    assert not torch.allclose(plain, with_adapters, atol=1e-2)


def test_diffusers_loads_the_adapters_and_gives_the_same_output(adapted, tmp_path):
    from diffusers import FluxPipeline

    with_random_adapters(adapted.transformer)
    with_adapters = velocity(adapted)
    write_lora(trained_parameters(adapted.transformer), SETTINGS, tmp_path)
    pipeline = FluxPipeline.from_pretrained("assets/tiny/family/base", text_encoder=None, text_encoder_2=None)
    pipeline.load_lora_weights(tmp_path)
    fresh = load_base(load_settings(Path("profiles/tiny.yaml")).model)
    fresh.transformer = pipeline.transformer
    assert torch.allclose(velocity(fresh), with_adapters, atol=1e-5)


def test_writing_adapters_twice_gives_the_same_bytes(adapted, tmp_path):
    contents = [
        write_lora(trained_parameters(adapted.transformer), SETTINGS, tmp_path / str(i)).read_bytes()
        for i in range(3)
    ]
    assert contents[0] == contents[1] == contents[2]


def test_initial_adapter_weights_depend_only_on_seed_and_name():
    a = initial_weights("x.lora_A.default.weight", (4, 16), 0)
    assert torch.equal(a, initial_weights("x.lora_A.default.weight", (4, 16), 0))
    assert not torch.equal(a, initial_weights("y.lora_A.default.weight", (4, 16), 0))
    assert not torch.equal(a, initial_weights("x.lora_A.default.weight", (4, 16), 1))
    assert float(a.abs().max()) <= 0.25
    assert not initial_weights("x.lora_B.default.weight", (16, 4), 0).any()


def test_an_unknown_target_raises_an_error_that_lists_the_known_ones(base):
    with pytest.raises(ConfigError, match=r"no layer 'to_x': known are .*attn\.to_q"):
        add_lora(base.transformer, SETTINGS.model_copy(update={"targets": ["to_x"]}))


def test_a_checkpoint_of_adapters_is_written_as_a_merged_model_and_as_adapters(adapted, tmp_path):
    from srpo_core.models import load_transformer, write_transformer
    from srpo_core.weights.shards import write_shards

    with_random_adapters(adapted.transformer)
    with_adapters = velocity(adapted)
    write_shards(tmp_path / "shards", trained_parameters(adapted.transformer))
    settings = load_settings(Path("profiles/tiny.yaml"))
    train = settings.train.model_copy(update={"tune": "lora", "lora": SETTINGS})
    write_transformer(settings.model, train, tmp_path / "shards", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    adapted.transformer = load_transformer(settings.model, tmp_path / "out")
    assert torch.allclose(velocity(adapted), with_adapters, atol=1e-5)
