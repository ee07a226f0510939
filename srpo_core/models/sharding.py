"""A transformer cut over the workers: FSDP2, one block gathered at a time."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.weights.shards import read_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


def shard(transformer: Any, mesh: "DeviceMesh", *, gather: "torch.dtype | None") -> None:
    """Cut weights, gradients and with them the optimizer's state of each block, and of the rest, over `mesh`.

    Weights keep their type where they lie and are gathered in `gather`, or in their own, for each block's forward
    and backward; gradients are summed over the workers in the type of the weights. In place: parameters become
    DTensors.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=gather,
        reduce_dtype=None if gather is None else torch.float32,
        cast_forward_inputs=False,  # autocast casts what a matrix product reads; positions stay in float32
    )
    for block in blocks(transformer):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # the outermost too: left gathered after a forward pass alone, its parameters are not those that the optimizer knows
    fully_shard(transformer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the global batch already
            module.set_force_sum_reduction_for_comms(enable=True)


def whole(tensor: "Tensor") -> "Tensor":
    """A tensor as a rank's own, whether it is cut over the workers or not; then every worker must ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blocks(transformer: Any) -> "list[torch.nn.Module]":
    """The blocks of a diffusers transformer: what its class says must not be cut further."""
    names = set(transformer._no_split_modules or [])
    return [module for module in transformer.modules() if type(module).__name__ in names]


def read_base_weights(transformer: Any, directory: Path) -> None:
    """Fill a transformer, cut or whole, with a diffusers directory's weights; adapters beside them stay as they are.

    Raises:
        ArtifactError: the directory cannot be read, or lacks a tensor.
    """
    state = {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in transformer.named_parameters()
        if ".lora_" not in name
    }
    read_shards(directory, state)
