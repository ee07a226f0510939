import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from srpo_core.models import flux
from srpo_core.models.flux_forward import exact_times, flux_velocity, is_plain, rotary_angles
from srpo_core.plan.counting import AsOnDevice, Meter
from srpo_core.protocols import Condition

ROOT = Path(__file__).resolve().parents[2]
TEXT, SIDE = 5, 3


def small_flux(**changes):
    torch.manual_seed(0)
    options = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**options | changes)


@pytest.fixture
def transformer():
    return small_flux()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    ids = torch.cartesian_prod(torch.zeros(1, dtype=int), torch.arange(SIDE), torch.arange(SIDE)).float()
    return {
        "hidden_states": torch.randn(2, SIDE * SIDE, 16),
        "encoder_hidden_states": torch.randn(2, TEXT, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([0.25, 0.8]),
        "guidance": torch.tensor([1.0, 3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }


def theirs(transformer, inputs):
    return transformer(**inputs, return_dict=False)[0]


def ours(transformer, inputs):
    return flux_velocity(
        transformer,
        inputs["hidden_states"],
        inputs["encoder_hidden_states"],
        inputs["pooled_projections"],
        timestep=inputs["timestep"],
        guidance=inputs["guidance"],
        rotary=rotary_angles(transformer, inputs["txt_ids"], inputs["img_ids"]),
    )


def relative_error(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def test_the_velocity_is_bit_identical_to_diffusers(transformer, inputs):
    with torch.no_grad():
        torch.testing.assert_close(
            ours(transformer, inputs), theirs(transformer, inputs), rtol=1e-6, atol=1e-6
        )
    torch.testing.assert_close(ours(transformer, inputs), theirs(transformer, inputs), rtol=1e-6, atol=1e-6)


def test_a_transformer_without_guidance_embedding_receives_none(inputs):
    schnell, inputs = small_flux(guidance_embeds=False), inputs | {"guidance": None}
    expected = theirs(schnell, inputs)
    torch.testing.assert_close(ours(schnell, inputs), expected, rtol=1e-6, atol=1e-6)
    with exact_times(schnell, inputs["timestep"], None):
        torch.testing.assert_close(theirs(schnell, inputs), expected, rtol=1e-6, atol=1e-6)


def test_every_gradient_matches_diffusers(transformer, inputs):
    gradients = []
    for forward in (theirs, ours):
        transformer.zero_grad()
        forward(transformer, inputs).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in transformer.named_parameters()})
    expected, actual = gradients
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert float((actual[name] - gradient).norm()) < 1e-5 * max(float(gradient.norm()), 1e-3 * total), (
            name
        )


def test_an_adapter_on_a_layer_takes_effect(transformer, inputs):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = transformer.transformer_blocks[0].attn.to_q
    layer.__class__ = Doubled
    assert relative_error(ours(transformer, inputs), theirs(transformer, inputs)) < 1e-6


def test_an_unmodified_transformer_counts_as_plain(transformer):
    assert is_plain(transformer)


def test_checkpointing_fused_projections_and_hooks_require_diffusers_forward(transformer):
    transformer.enable_gradient_checkpointing()
    assert not is_plain(transformer)
    transformer.disable_gradient_checkpointing()
    handle = transformer.single_transformer_blocks[1].register_forward_hook(lambda *_: None)
    assert not is_plain(transformer)
    handle.remove()
    transformer.forward = transformer.forward  # as diffusers' own hooks do
    assert not is_plain(transformer)
    del transformer.forward
    assert is_plain(transformer)
    transformer.fuse_qkv_projections()
    assert not is_plain(transformer)
    assert not is_plain(torch.nn.Sequential(transformer))


@pytest.mark.parametrize(("size", "saved"), [(720, 0.0030), (1024, 0.0017)])
def test_at_full_size_our_forward_saves_less_than_a_third_of_a_per_cent(monkeypatch, size, saved):
    """So FSDP2 and compiled blocks, which use diffusers' forward, lose next to nothing (docs/training.md)."""
    from diffusers import AutoencoderKL

    config = json.loads((ROOT / "benchmarks/specs/flux1_dev/spec.json").read_text())["configs"]
    with torch.device("meta"):
        full, vae = FluxTransformer2DModel(**config["flux"]), AutoencoderKL(**config["vae"])
        architecture = flux.Flux(vae, None, height=size, width=size)
        shapes = flux.condition_shapes(config["flux"], 512)
        condition = Condition({name: torch.empty(shape) for name, shape in shapes.items()})
        latents, time = torch.empty(1, *architecture.latent_shape), torch.empty(1)
    flops = []
    for plain in (True, False):
        monkeypatch.setattr(flux, "is_plain", lambda _, plain=plain: plain)
        meter = Meter()
        with AsOnDevice(autocast=True), meter, torch.no_grad():
            architecture.predict(full, latents, time, 3.5, condition)
        flops.append(meter.flops)
    assert 1 - flops[0] / flops[1] == pytest.approx(saved, abs=5e-5)
