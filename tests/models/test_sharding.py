"""The real configuration of FLUX.1-dev, sharded over simulated workers on the meta device: only shapes and bytes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from srpo_core.config import load_settings
from srpo_core.models import load_base
from srpo_core.models.lora import add_lora, targets
from srpo_core.models.sharding import blocks, mesh_of, shard, workers_per_copy
from srpo_core.protocols import Condition
from srpo_core.training.learner import adamw
from srpo_core.weights.models_lock import read_lock

GB = 1e9
PROFILE = Path(__file__).parents[2] / "profiles/flux1_dev.yaml"
COST_MODEL = {8: 23.8, 32: 6.0}  # GB of fp32 parameters, gradients and moments per rank


@pytest.fixture(scope="module")
def flux():
    """The transformer of FLUX.1-dev on the meta device."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel.from_config(read_lock()["models/flux1_dev"].architecture["transformer"])


@pytest.fixture
def fake_ranks():
    """Return a function that starts a fake process group of any size."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def start_ranks(world):
        dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
        return init_device_mesh("cpu", (world,))

    yield start_ranks
    dist.destroy_process_group()


@pytest.fixture
def world_of_one(tmp_path):
    """Open a process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def local_bytes(tensor):
    """Return the bytes of a sharded tensor on one rank."""
    local = tensor.to_local()
    return local.numel() * local.element_size()


def fused(name):
    """Return the original tensor that contains a diffusers tensor: the original joins q, k, v (and the MLP)."""
    for part in ("to_q", "to_k", "to_v", "proj_mlp"):
        name = name.replace(f"attn.{part}.", "qkv.").replace(f".{part}.", ".qkv.")
    return name.replace("add_q_proj", "add").replace("add_k_proj", "add").replace("add_v_proj", "add")


def test_the_configuration_matches_flux1_dev(flux):
    assert sum(p.numel() for p in flux.parameters()) == 11_901_408_320
    names = [name for name, _ in flux.named_parameters()]
    assert len({fused(name) for name in names}) == 780, "tensors as Black Forest Labs count them"
    assert len(names) == 1160, "and as diffusers does"
    assert len(blocks(flux)) == 57


@pytest.mark.parametrize("world", [8, 32])
def test_each_rank_stores_its_share_of_the_state(flux, fake_ranks, world):
    transformer = copy.deepcopy(flux)
    shard(transformer, fake_ranks(world), gather=torch.bfloat16)
    parameters = list(transformer.parameters())
    plain = load_settings(PROFILE).train
    compute = plain.compute.model_copy(
        update={"fused_optimizer": False}
    )  # the fused kernel does not support the meta device
    optimizer = adamw(transformer, plain.model_copy(update={"compute": compute}))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    held = sum(map(local_bytes, [*parameters, *(p.grad for p in parameters), *moments])) / GB
    print(f"{world} ranks: {held:.2f} GB on rank 0, cost model {COST_MODEL[world]}")
    assert held == pytest.approx(COST_MODEL[world], rel=0.05)
    assert sum(map(local_bytes, parameters)) == pytest.approx(held * GB / 4)


@pytest.mark.parametrize(
    ("world", "shard_group", "copies"), [(32, None, 1), (32, 8, 4), (8, 8, 1), (12, 8, 1), (4, 8, 1)]
)
def test_a_group_of_workers_holds_one_copy_or_all_do_if_they_form_no_whole_groups(
    fake_ranks, world, shard_group, copies
):
    """The second case is HSDP on four machines of eight GPUs, the last two follow an elastic start."""
    fake_ranks(world)
    resources = load_settings(PROFILE).resources.model_copy(update={"shard_group": shard_group})
    mesh = mesh_of(resources, world, "cpu")
    assert workers_per_copy(resources, world) == world // copies
    transformer = torch.nn.Linear(8, 96, bias=False, device="meta")
    transformer._no_split_modules = None
    shard(transformer, mesh, gather=None)
    assert transformer.weight.to_local().numel() * (world // copies) == 8 * 96
    if copies > 1:
        assert mesh.mesh.tolist()[0] == list(range(shard_group)), "consecutive ranks share a copy"


@pytest.mark.usefixtures("world_of_one")
def test_each_block_starts_to_gather_the_one_that_is_called_after_it(monkeypatch):
    monkeypatch.chdir(PROFILE.parents[1])
    base = load_base(load_settings(PROFILE.with_name("tiny.yaml")).model)
    transformer, called = base.transformer, []
    shard(transformer, init_device_mesh("cpu", (1,)), gather=None)
    for module in (transformer, *blocks(transformer)):
        module.register_forward_pre_hook(lambda module, _inputs: called.append(module))
    config = transformer.config
    condition = Condition(
        {
            "prompt_embeds": torch.randn(1, 12, config.joint_attention_dim),
            "pooled_prompt_embeds": torch.randn(1, config.pooled_projection_dim),
        }
    )
    noise = torch.randn(1, *base.latent_shape)
    base.generate_latents(condition, noise, num_inference_steps=1, guidance_scale=1.0)
    assert called == [transformer, *blocks(transformer)]
    prefetched = [module._get_fsdp_state()._states_to_forward_prefetch for module in called]
    assert prefetched == [[following._get_fsdp_state()] for following in called[1:]] + [[]]


def test_a_model_that_is_not_sharded_has_no_mesh():
    resources = load_settings(PROFILE).resources.model_copy(update={"shard": False})
    assert mesh_of(resources, 8, "cpu") is None
    assert workers_per_copy(resources, 8) == 1


def test_lora_on_all_linear_layers_of_the_blocks_has_the_size_of_the_cost_model(flux):
    settings = load_settings(PROFILE.with_name("flux1_dev_lora.yaml")).train.lora
    transformer = copy.deepcopy(flux)
    assert "proj_out" not in targets(transformer, settings), "the last layer is outside the blocks"
    add_lora(transformer, settings)
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(261, rel=0.01)
