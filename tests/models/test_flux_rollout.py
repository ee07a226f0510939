"""A prepared rollout equals a plain one up to rounding, and is used only where its rule allows it."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from srpo_core.algorithm.reference import truncated_time
from srpo_core.algorithm.rollout import rollout
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import LoraSettings
from srpo_core.models import flux_rollout
from srpo_core.models.base import Base
from srpo_core.models.flux import POOLED_EMBEDS, PROMPT_EMBEDS, Flux
from srpo_core.models.flux_rollout import can_be_prepared
from srpo_core.models.lora import add_lora, initialize_lora
from srpo_core.protocols import Condition

STEPS, GUIDANCE, ROUNDING = 5, 3.5, 1e-6
CPU = torch.device("cpu")


def small_base(**changes):
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
    transformer = FluxTransformer2DModel(**options | changes)
    with torch.no_grad():  # the weights of normalizations are ones at first
        for name, parameter in transformer.named_parameters():
            if ".norm_" in name and parameter.dim() == 1:
                parameter.uniform_(0.5, 2)
    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2)
    return Base(
        Flux(vae, None, height=8, width=8),
        transformer,
        vae,
        of_size=lambda height, width: Flux(vae, None, height=height, width=width),
    )


@pytest.fixture
def base():
    return small_base()


def inputs(base, count=2):
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(count, 5, 12, generator=generator)
    pooled = torch.randn(count, 10, generator=generator)
    condition = Condition({PROMPT_EMBEDS: text, POOLED_EMBEDS: pooled})
    return torch.randn(count, *base.latent_shape, generator=generator), condition


def sigmas():
    return shifted_sigmas(STEPS, 3.0)


def rolled(base, noise, condition, **options):
    return rollout(base.velocity, noise, condition, sigmas=sigmas(), guidance=GUIDANCE, **options)


def prepared(base, noise, condition, **options):
    """Return the images of a prepared rollout, and how often the text was embedded."""
    times = options.get("time", lambda sigma: sigma)(sigmas()[:-1])
    with (
        counted(base.transformer.context_embedder) as calls,
        base.prepared(condition, times=times, guidance=GUIDANCE),
    ):
        images = rolled(base, noise, condition, **options)
    return images, len(calls)


@contextmanager
def counted(module):
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def relative_error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("guidance_embeds", [True, False], ids=["guidance", "schnell"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layers", [(2, 3), (0, 1), (1, 1)])
def test_a_prepared_rollout_equals_a_plain_one_and_embeds_the_text_once(guidance_embeds, count, layers):
    base = small_base(guidance_embeds=guidance_embeds, num_layers=layers[0], num_single_layers=layers[1])
    noise, condition = inputs(base, count)
    images, embedded = prepared(base, noise, condition)
    assert relative_error(images, rolled(base, noise, condition)) < ROUNDING
    assert embedded == 1


def test_the_reference_implementations_truncated_times_are_prepared_too(base):
    noise, condition = inputs(base)
    images, embedded = prepared(base, noise, condition, time=truncated_time)
    expected = rolled(base, noise, condition, time=truncated_time)
    assert (
        relative_error(images, expected) < ROUNDING < relative_error(images, rolled(base, noise, condition))
    )
    assert embedded == 1


def test_images_of_another_size_are_prepared_too(base):
    with base.sized(8, 16):
        noise, condition = inputs(base)
        assert noise.shape == (2, 32, 16)
        images, embedded = prepared(base, noise, condition)
        assert relative_error(images, rolled(base, noise, condition)) < ROUNDING
    assert embedded == 1


def test_prompts_times_and_modulations_take_effect_by_sample_and_step(base):
    noise, condition = inputs(base, 3)
    images, _ = prepared(base, noise, condition)
    for row in range(3):
        alone, _ = prepared(base, noise[[row]], condition[[row]])
        assert relative_error(images[[row]], alone) < ROUNDING


def test_weights_that_changed_since_the_last_rollout_are_used(base):
    noise, condition = inputs(base)
    before, _ = prepared(base, noise, condition)
    with torch.no_grad():
        for parameter in base.transformer.parameters():
            parameter.mul_(1.1)
    after, _ = prepared(base, noise, condition)
    assert relative_error(after, rolled(base, noise, condition)) < ROUNDING < relative_error(after, before)


def test_a_prepared_rollouts_images_can_be_trained_on(base):
    noise, condition = inputs(base)
    images, _ = prepared(base, noise, condition)
    scale = torch.ones((), requires_grad=True)
    (scale * images).square().sum().backward()
    assert scale.grad == pytest.approx(2 * float(images.square().sum()), rel=1e-5)


def test_calls_that_were_not_prepared_are_computed_as_always(base):
    noise, condition = inputs(base)
    time = sigmas()[1]

    def call(latents=noise, timestep=time, guidance=GUIDANCE, condition=condition):
        return base.velocity(latents, timestep.expand(len(latents)), guidance, condition)

    others = (
        {"timestep": time + 0.01},
        {"guidance": 1.0},
        {"condition": condition[[1, 0]]},
        {"latents": noise[:1], "condition": condition[:1]},
    )
    mixed = (noise, sigmas()[:2], GUIDANCE, condition)
    with torch.no_grad():
        usual = [call(**changes) for changes in others]
        expected = base.velocity(*mixed)
    with base.prepared(condition, times=sigmas()[:-1], guidance=GUIDANCE), torch.no_grad():
        assert all(torch.equal(call(**changes), v) for changes, v in zip(others, usual, strict=True))
        assert torch.equal(base.velocity(*mixed), expected)
        with torch.enable_grad():
            assert call().requires_grad
        with counted(base.transformer.context_embedder) as calls:
            call()
        assert calls == []
    with counted(base.transformer.context_embedder) as calls:
        call()
    assert calls == [1]


def test_no_step_and_one_step_can_be_prepared(base):
    noise, condition = inputs(base)
    for times in (sigmas()[:0], sigmas()[:1]):
        with base.prepared(condition, times=times, guidance=GUIDANCE):
            found = rollout(
                base.velocity, noise, condition, sigmas=sigmas()[: len(times) + 1], guidance=GUIDANCE
            )
        plain = rollout(base.velocity, noise, condition, sigmas=sigmas()[: len(times) + 1], guidance=GUIDANCE)
        assert relative_error(found, plain) < ROUNDING


def test_an_error_in_a_rollout_ends_its_preparation(base):
    noise, condition = inputs(base)
    with pytest.raises(KeyError), base.prepared(condition, times=sigmas()[:-1], guidance=GUIDANCE):
        raise KeyError
    with counted(base.transformer.context_embedder) as calls:
        rolled(base, noise, condition)
    assert len(calls) == STEPS


class Doubled(torch.nn.Linear):
    """A layer of another kind, as bitsandbytes' 4-bit layers are."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", ["attn.to_q", "attn.to_v", "proj_mlp", "proj_out", "norm.linear"])
def test_a_layer_of_another_kind_keeps_its_own_forward(base, name):
    noise, condition = inputs(base)
    for block in base.transformer.single_transformer_blocks:
        block.get_submodule(name).__class__ = Doubled
    images, embedded = prepared(base, noise, condition)
    assert relative_error(images, rolled(base, noise, condition)) < ROUNDING
    assert embedded == 1


def test_a_hook_on_a_layer_runs_at_every_step(base):
    noise, condition = inputs(base)
    with counted(base.transformer.transformer_blocks[0].attn.to_q) as calls:
        prepared(base, noise, condition)
    assert len(calls) == STEPS


def test_adapters_take_effect(base):
    targets = ["to_q", "to_v", "add_k_proj", "net.2", "proj_out", "norm.linear"]
    add_lora(base.transformer, LoraSettings(rank=2, alpha=4, targets=targets, frozen="float32"))
    initialize_lora(base.transformer, seed=0)
    noise, condition = inputs(base)
    before, _ = prepared(base, noise, condition)
    with torch.no_grad():
        for name, parameter in base.transformer.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    images, embedded = prepared(base, noise, condition)
    assert relative_error(images, rolled(base, noise, condition)) < ROUNDING < relative_error(images, before)
    assert embedded == 1


def test_layers_with_many_weights_are_not_copied(base, monkeypatch):
    noise, condition = inputs(base)
    joined, _ = prepared(base, noise, condition)
    monkeypatch.setattr(flux_rollout, "JOINED_WEIGHTS", 0)
    with counted(base.transformer.transformer_blocks[0].attn.to_q) as calls:  # a hook is not copied either
        apart, _ = prepared(base, noise, condition)
    assert len(calls) == STEPS
    assert relative_error(apart, joined) < ROUNDING


@pytest.mark.parametrize("largest", [flux_rollout.JOINED_WEIGHTS, 0])
def test_under_autocast_a_prepared_rollout_is_as_close_to_float32_as_a_plain_one(base, monkeypatch, largest):
    monkeypatch.setattr(flux_rollout, "JOINED_WEIGHTS", largest)
    noise, condition = inputs(base)
    exact = rolled(base, noise, condition)
    with base.autocast(enabled=True):
        images, embedded = prepared(base, noise, condition)
        plain = rolled(base, noise, condition)
    assert images.dtype == torch.float32
    assert 0 < relative_error(images, exact) < 1.5 * relative_error(plain, exact)
    assert embedded == 1


@pytest.mark.parametrize("change", ["hook", "compiled", "checkpointed", "norm", "eps", "wrapped"])
def test_other_transformers_are_not_prepared_and_give_the_same_bits(base, change):
    noise, condition = inputs(base)
    block = base.transformer.single_transformer_blocks[0]
    if change == "hook":  # as FSDP2 and offloading have
        block.register_forward_pre_hook(lambda *_: None)
    elif change == "compiled":
        block.compile(backend="eager", disable=True)
    elif change == "checkpointed":
        base.transformer.enable_gradient_checkpointing()
    elif change == "norm":
        block.attn.norm_q.register_forward_hook(lambda *_: None)
    elif change == "eps":
        block.attn.norm_q.eps = 1e-3
    else:
        base.transformer.forward = base.transformer.forward
    expected = rolled(base, noise, condition)
    images, embedded = prepared(base, noise, condition)
    assert torch.equal(images, expected)
    assert embedded == STEPS
    assert not can_be_prepared(base.transformer, CPU)


def test_only_a_cpu_prepares_rollouts(base):
    assert can_be_prepared(base.transformer, CPU)
    assert not can_be_prepared(base.transformer, torch.device("cuda"))
    assert not can_be_prepared(base.transformer, torch.device("meta"))
