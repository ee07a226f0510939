"""Keep a transformer in the host's memory, and copy each block to the device when it is called."""

from typing import TYPE_CHECKING, Any

from srpo_core.models.sharding import blocks

if TYPE_CHECKING:
    import torch


def offload_blocks(transformer: Any, device: "torch.device") -> None:
    """Offload a transformer by diffusers' group offloading, in place; its outputs stay the same.

    On a GPU the next block is copied while one computes, for which the blocks' weights have to be in pinned memory. diffusers
    pins a copy of all of them before it frees one. Pinned before, they are not copied again.
    """
    if device.type == "cuda":
        pin_blocks(transformer)
    transformer.enable_group_offload(
        device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def pin_blocks(transformer: Any) -> None:
    """Move the tensors of the blocks to pinned memory in place, one after the other: never two copies of more than one."""
    for block in blocks(transformer):
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.data = tensor.data.pin_memory()


def free_pinned_memory() -> None:
    """Return the pinned memory of tensors that no longer exist to the system; torch would keep it for new ones."""
    import torch

    torch.accelerator.empty_host_cache()


def pinned_size(num_elements: int) -> int:
    """Return the number of elements for which torch reserves pinned memory: the next power of two.

    Holds for the bytes too, because an element has a power of two of them. Source: `allocate` in torch's
    ATen/core/CachingHostAllocator.h.
    """
    return 1 << (num_elements - 1).bit_length()
