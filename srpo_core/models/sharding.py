"""Shard a transformer across workers with FSDP2, gathering one block at a time."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.weights.shards import read_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


def shard(transformer: Any, mesh: "DeviceMesh", *, gather: "torch.dtype | None") -> None:
    """Shard weights, gradients and so the optimizer's state over `mesh`: each block, then the rest.

    Works in place: parameters become DTensors. Shards keep the type of the weights. A block's weights are gathered
    as `gather`, or in their own type, for its forward and backward pass; gradients are summed over the workers in
    the type of the weights.
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
