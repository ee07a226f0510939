"""Settings that save time or memory do not change the training result beyond the stated tolerances."""

import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.utils._python_dispatch import TorchDispatchMode

from srpo_core.config import ComputeSettings, load_settings
from srpo_core.errors import ConfigError
from srpo_core.models import load_base
from srpo_core.models.attention import use_attention
from srpo_core.models.base import Base
from srpo_core.models.checkpointing import evenly_spaced_share
from srpo_core.models.compiling import uncompiled_calls_reported
from srpo_core.models.flux import POOLED_EMBEDS, PROMPT_EMBEDS, Flux
from srpo_core.models.flux_forward import is_plain
from srpo_core.protocols import Condition

ROOT = Path(__file__).resolve().parents[2]
OFF = {
    "autocast": False,
    "gather_rollout": False,
    "checkpoint_blocks": 0.0,
    "checkpoint_decode": False,
    "compile": False,
    "attention": "native",
    "tf32": False,
    "fused_optimizer": False,
}
BFLOAT16 = 2e-2  # relative error of a call: some tens of roundings of 2⁻⁹ each


def base(*, layers=2, single_layers=4, channels=(8, 16), num_sizes=1, **changes):
    """Return a small FLUX and VAE with random weights, prepared with the compute settings `changes`."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    side = 8 * 2 ** (len(channels) - 1)  # 8 x 8 latents, 16 tokens
    made = Base(Flux(vae, None, height=side, width=side), transformer.train(), vae)
    return made.prepare(ComputeSettings(**{**OFF, **changes}), num_sizes=num_sizes)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    return (
        noise(2, 16, 16),
        torch.tensor([0.835, 0.278]),
        3.5,
        Condition({PROMPT_EMBEDS: noise(2, 5, 12), POOLED_EMBEDS: noise(2, 10)}),
    )


def gradients(model, inputs):
    """Return all gradients of a call and a decode, and the bytes kept for the backward pass."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        images = model.decode(inputs[0] - 0.5 * model.velocity(*inputs))
    images.square().mean().backward()
    return {name: p.grad for name, p in model.transformer.named_parameters()}, kept


def relative_error(ours, theirs):
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def largest_difference(ours, theirs):
    """Return the largest difference of two sets of gradients, relative to their total norm."""
    total = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    return max(float((ours[name] - theirs[name]).norm() / total) for name in theirs)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_checkpointed_blocks_give_bit_identical_gradients(inputs, share):
    expected, kept = gradients(base(), inputs)
    actual, fewer = gradients(base(checkpoint_blocks=share), inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert fewer < (1 - 0.5 * share) * kept


class Kernels(TorchDispatchMode):
    """Collects the names of the attention kernels that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else func.__name__
        if "attention" in name:
            self.names.add(name.removesuffix("_backward"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("plain", [True, False], ids=["ours", "diffusers"])
def test_the_attention_of_the_settings_is_used_and_gives_the_same_gradients(inputs, plain):
    flash = "_scaled_dot_product_flash_attention_for_cpu"
    expected = None
    for backend, kernel in (("native", {flash}), ("_native_flash", {flash}), ("_native_math", set())):
        model = base(attention=backend, checkpoint_blocks=0.5)
        assert is_plain(model.transformer)
        if not plain:
            model.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None)
        with Kernels() as kernels:
            model.velocity(*inputs)
        found, _ = gradients(model, inputs)
        assert kernels.names & {flash} == kernel, backend
        expected = expected or found
        assert largest_difference(found, expected) < 1e-5, backend


def test_the_attention_of_one_model_is_not_that_of_the_next(inputs):
    base(attention="_native_math")
    other = base()
    other.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None)
    with Kernels() as kernels:
        other.velocity(*inputs)
    assert "_scaled_dot_product_flash_attention_for_cpu" in kernels.names


def test_attention_that_is_not_installed_is_refused():
    with pytest.raises(ConfigError, match=r"^train\.compute\.attention flash: .*; choose native$"):
        use_attention(base().transformer, "flash")


def test_the_names_of_attention_in_the_settings_are_those_of_diffusers():
    known = get_args(ComputeSettings.model_fields["attention"].annotation)
    assert set(known) <= {one.value for one in AttentionBackendName}
    assert "native" in known


def test_each_further_checkpointed_block_saves_memory(inputs):
    kept = [gradients(base(checkpoint_blocks=share / 6), inputs)[1] for share in range(7)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 7


def test_a_checkpointed_decode_gives_the_same_gradients_and_keeps_fewer_activations(inputs):
    expected, kept = gradients(base(), inputs)
    actual, fewer = gradients(base(checkpoint_decode=True), inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert fewer < kept
    latents = inputs[0].clone().requires_grad_()
    sizes = []
    for changes in ({}, {"checkpoint_decode": True}):
        model, size = base(**changes), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=size: s.append(t.nbytes) or t, lambda t: t):
            model.decode(latents)
        sizes.append(sum(size))
    assert sizes[1] < 0.4 * sizes[0]


def test_diffusers_own_forward_checkpoints_the_chosen_blocks_too(inputs):
    """A hook on a block, as FSDP adds, requires diffusers' forward."""
    results = []
    for share in (0.0, 0.5, 1.0):
        model = base(checkpoint_blocks=share)
        model.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None)
        results.append(gradients(model, inputs))
    assert results[0][1] > results[1][1] > results[2][1]
    for actual, _ in results[1:]:
        assert all(torch.equal(actual[name], results[0][0][name]) for name in actual)


def test_the_chosen_share_of_blocks_is_evenly_spaced():
    blocks = list(range(12))
    assert evenly_spaced_share(blocks, 0) == []
    assert evenly_spaced_share(blocks, 0.25) == [3, 7, 11]
    assert evenly_spaced_share(blocks, 0.5) == [1, 3, 5, 7, 9, 11]
    assert evenly_spaced_share(blocks, 1) == blocks
    assert [len(evenly_spaced_share(range(100), n / 100)) for n in range(101)] == list(range(101))


def test_autocast_is_close_to_float32_and_keeps_weights_and_gradients_in_float32(inputs):
    exact, half = base(), base(autocast=True)
    expected, actual = exact.velocity(*inputs), half.velocity(*inputs)
    assert actual.dtype == torch.float32
    assert 0 < relative_error(actual, expected) < BFLOAT16
    images = half.decode(inputs[0])
    assert images.dtype == torch.float32
    assert 0 < relative_error(images, exact.decode(inputs[0])) < BFLOAT16
    grads, reference = gradients(half, inputs)[0], gradients(exact, inputs)[0]
    assert (
        {g.dtype for g in grads.values()}
        == {p.dtype for p in half.transformer.parameters()}
        == {torch.float32}
    )
    assert 0 < largest_difference(grads, reference) < BFLOAT16


def test_generation_under_autocast_keeps_no_copy_of_the_weights_between_steps(monkeypatch):
    """Early stopping generates with weights that require gradients; torch would cache their casts."""
    monkeypatch.chdir(ROOT)
    generation, cached = load_base(load_settings(ROOT / "profiles/tiny.yaml").model), []
    generation.transformer.register_forward_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    config = generation.transformer.config
    condition = Condition(
        {
            PROMPT_EMBEDS: torch.zeros(1, 4, config.joint_attention_dim),
            POOLED_EMBEDS: torch.zeros(1, config.pooled_projection_dim),
        }
    )
    with generation.autocast(enabled=True):
        generation.generate(
            condition, torch.randn(1, *generation.latent_shape), num_inference_steps=2, guidance_scale=3.5
        )
    assert cached == [False, False]


def test_a_base_loaded_for_generation_requires_no_gradient(monkeypatch):
    monkeypatch.chdir(ROOT)
    model = load_settings(ROOT / "profiles/tiny.yaml").model
    for directory in (None, ROOT / model.path / "transformer"):
        weights = load_base(model, directory).transformer.parameters()
        assert not any(parameter.requires_grad for parameter in weights)


def test_autocast_keeps_fewer_bytes_for_the_backward_pass(inputs):
    assert gradients(base(autocast=True), inputs)[1] < 0.8 * gradients(base(), inputs)[1]


@pytest.mark.parametrize("plain", [True, False], ids=["ours", "diffusers"])
def test_a_transformer_under_autocast_receives_time_and_guidance_in_float32(inputs, plain):
    """835 thousandths are 836 in bfloat16, and guidance 3.5 is 3504 thousandths."""
    model = base(autocast=True)
    if not plain:
        model.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None)
    seen = []
    handle = model.transformer.time_text_embed.time_proj.register_forward_hook(
        lambda _, args, __: seen.extend(args)
    )
    model.velocity(*inputs)
    handle.remove()
    assert [t.tolist() for t in seen] == [pytest.approx([835.0, 278.0]), [3500.0, 3500.0]]


def test_gathering_changes_nothing_of_a_model_that_is_not_sharded(inputs):
    model = base(gather_rollout=True)
    with model.gathered(), torch.no_grad():
        assert torch.equal(model.velocity(*inputs), base().velocity(*inputs))


def test_compilation_without_a_compiler_raises_an_error(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match=r"compile needs a C\+\+ compiler and no-such-compiler is not found"
    ):
        base(compile=True)


@pytest.fixture
def compiled_quickly(monkeypatch):
    """Let torch.compile record graphs as always, and run them uncompiled; forget them afterwards."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda *args, **options: compile_module(*args, backend="eager", **options)
    )
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(torch._dynamo.config, name, getattr(torch._dynamo.config, name))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def call_with_every_size(model, inputs, sizes):
    """Call transformer and decoder as training does, for images of several sizes in micro-batches of two sizes."""
    _, timestep, guidance, condition = inputs
    for count in (1, 2):
        for height, width in sizes:
            model.architecture = Flux(model.vae, None, height=height, width=width)
            latents = torch.randn(count, height * width // 4, 16)
            call = (latents, timestep[:count], guidance, condition[:count])
            with torch.no_grad():
                model.velocity(*call)
                model.decode(latents)
            model.decode(model.velocity(*call)).mean().backward()


@pytest.mark.pipeline  # records forty graphs
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_every_size_of_training_is_compiled_and_more_than_torch_compiles_is_reported(
    inputs, compiled_quickly, monkeypatch
):
    small = {"layers": 1, "single_layers": 1, "channels": (8,), "num_sizes": 3}
    model, graphs, said = base(**small, compile=True), torch._dynamo.utils.counters["stats"], []
    with uncompiled_calls_reported(said.append):
        call_with_every_size(model, inputs, [(8, 8), (8, 12)])
        assert graphs["unique_graphs"] >= 3 * 2 * 2 * 2, (
            "of blocks and decoder, by sizes, batches and gradients"
        )
        assert said == []
        torch._dynamo.reset()
        monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # torch's own
        call_with_every_size(model, inputs, [(8, 8), (8, 12), (8, 16)])
    (line,) = said
    assert line.startswith("torch.compile: a function needs more than 8 graphs")
    assert "train.buckets" in line


@pytest.mark.pipeline
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_gradients_with_and_without_checkpointing(inputs):
    small = {"layers": 1, "single_layers": 2, "channels": (8,)}
    checkpointed = {"checkpoint_blocks": 0.5, "checkpoint_decode": True}
    expected, _ = gradients(base(**small), inputs)
    actual, _ = gradients(base(**small, **checkpointed, compile=True), inputs)
    assert actual.keys() == expected.keys()
    assert largest_difference(actual, expected) < 1e-5
