"""Shard a transformer across workers with FSDP2, gathering one block at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.config import ResourceSettings
from srpo_core.weights.shards import read_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


def shard(transformer: Any, mesh: "DeviceMesh", *, gather: "torch.dtype | None") -> None:
    """Shard weights, gradients and so the optimizer's state over `mesh`: each block, then the rest.

    Works in place: parameters become DTensors. Shards keep the type of the weights. A block's weights are gathered
    as `gather`, or in their own type, for its forward and backward pass; gradients are summed over the workers in
    the type of the weights. Each block starts gathering the next one before it computes.

    mesh: of one dimension, or of two: `replicate` and `shard`.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=gather,
        reduce_dtype=None if gather is None else torch.float32,
        cast_forward_inputs=False,  # autocast casts the inputs of matrix products; positions stay in float32
    )
    for block in blocks(transformer):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Reshard the outermost module too: parameters that stay gathered after a forward pass without a backward pass
    # are not those that the optimizer holds.
    fully_shard(transformer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the global batch already
            module.set_force_sum_reduction_for_comms(enable=True)
    for module, following in pairwise((transformer, *blocks(transformer))):
        module.set_modules_to_forward_prefetch([following])


def workers_per_copy(resources: ResourceSettings, world: int) -> int:
    """Return the number of workers that together hold one copy of the model, 1 if each has its own.

    After an elastic start, `shard_group` may not divide the number of workers. Then all of them share one copy, which
    needs less memory on each.
    """
    if not resources.shard:
        return 1
    group = resources.shard_group
    return world if group is None or world % group else group


def not_grouped(resources: ResourceSettings, world: int) -> str | None:
    """Say that `world` workers form no groups of `shard_group`; None if they do, or no groups are asked for."""
    group = resources.shard_group
    if not resources.shard or group is None or world % group == 0:
        return None
    return (
        f"{world} workers started, which is no multiple of resources.shard_group {group}: all of them share one copy of "
        "the model, and gather it over the network"
    )


def mesh_of(resources: ResourceSettings, world: int, device_type: str) -> "DeviceMesh | None":
    """Return the mesh over which a model is sharded, None if it is not.

    With `shard_group` it has two dimensions: consecutive ranks share a copy, and the copies are replicated.
    """
    from torch.distributed.device_mesh import init_device_mesh

    size = workers_per_copy(resources, world)
    if not resources.shard:
        return None
    if size == world:
        return init_device_mesh(device_type, (world,))
    return init_device_mesh(device_type, (world // size, size), mesh_dim_names=("replicate", "shard"))


@contextmanager
def keep_gathered(transformer: Any) -> Iterator[None]:
    """Keep the weights of a sharded transformer gathered from its first call in the context until the end of it.

    Only for calls without a backward pass, between which the weights do not change. Every rank must enter the context.
    It costs the memory of all gathered weights, and saves gathering them again for each call.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in transformer.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)  # its name in torch has changed
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def whole(tensor: "Tensor") -> "Tensor":
    """Return a tensor in full on every rank. If it is sharded, all ranks must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blocks(transformer: Any) -> "list[torch.nn.Module]":
    """List the blocks of a diffusers transformer in order of depth: the modules named in `_no_split_modules`."""
    names = set(transformer._no_split_modules or [])
    return [module for module in transformer.modules() if type(module).__name__ in names]


def read_base_weights(transformer: Any, directory: Path) -> None:
    """Fill a transformer, sharded or not, with the weights of a diffusers directory; adapters keep theirs.

    Raises:
        ArtifactError: the directory cannot be read, or lacks a tensor.
    """
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in transformer.state_dict().items()
        if ".lora_" not in name
    }
    read_shards(directory, state)
