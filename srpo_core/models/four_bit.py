"""A frozen base in 4 bits (QLoRA, Dettmers et al. 2023): NF4 with double quantization, by bitsandbytes.

The matrices of the blocks' linear layers are stored in 4 bits and computed with in bfloat16. Everything else (biases,
norms, embeddings, the layers outside of the blocks) is in bfloat16.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.models.sharding import blocks
from srpo_core.weights.shards import read_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# bitsandbytes' defaults: weights that share a scale, and scales that share a scale of their own
SCALED_TOGETHER: Final = 64
SCALES_SCALED_TOGETHER: Final = 256


def read_in_four_bits(transformer: Any, directory: Path, device: "torch.device") -> None:
    """Fill a transformer without weights (meta device) from a diffusers directory; see `fill_in_four_bits`.

    Raises:
        ArtifactError: the directory cannot be read, or lacks a tensor.
    """
    fill_in_four_bits(transformer, partial(read_shards, directory), device)


def fill_in_four_bits(
    transformer: Any, fill: "Callable[[Mapping[str, Tensor]], None]", device: "torch.device"
) -> None:
    """Fill a transformer without weights (meta device) and quantize it on a device, a block at a time.

    At most one block is in bfloat16 at a time, so the base never needs more memory than in 4 bits and this block.

    fill: writes the weights into the tensors that it is given, in bfloat16 on the device, by their names.
    """
    import torch

    transformer.to(torch.bfloat16)
    names = {module: name for name, module in transformer.named_modules()}
    for block in blocks(transformer):
        block.to_empty(device=device)
        fill({f"{names[block]}.{name}": one for name, one in block.state_dict().items()})
        for name, layer in list(block.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                block.set_submodule(name, _four_bit(layer, device))
    rest = {
        name: torch.empty_like(one, device=device)
        for name, one in transformer.state_dict().items()
        if one.is_meta
    }
    fill(rest)
    transformer.load_state_dict(rest, strict=False, assign=True)
    transformer.is_loaded_in_4bit = True  # tells peft which kind of adapter layer to add


def matrices_of_blocks(transformer: Any) -> "list[Tensor]":
    """List the matrices of the blocks' linear layers, which `read_in_four_bits` quantizes, and those of adapters."""
    import torch

    layers = (layer for block in blocks(transformer) for layer in block.modules())
    return [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]


def bytes_in_four_bits(num_weights: int) -> int:
    """Return the bytes of a matrix of `num_weights` weights: the 4-bit weights, their scales, and two tables."""
    scales = -(-num_weights // SCALED_TOGETHER)
    tables = 4 * (16 + 256) + 4  # of the 4-bit values, of the 8-bit scales, and the mean of the scales
    return -(-num_weights // 2) + scales + 4 * -(-scales // SCALES_SCALED_TOGETHER) + tables


def _four_bit(linear: "torch.nn.Linear", device: "torch.device") -> "torch.nn.Linear":
    """Quantize a layer; its outputs are in bfloat16 as those of a layer under autocast."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    bias = linear.bias
    layer: torch.nn.Linear = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=bias is not None,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = Params4bit(linear.weight.data, quant_type="nf4", module=layer).to(device)
    layer.bias = bias
    # another layout of the weights, and other rounding, on some CPUs only
    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    layer.register_forward_pre_hook(_in_bfloat16)
    return layer


def _in_bfloat16(_module: "torch.nn.Module", inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    return tuple(one.bfloat16() for one in inputs)
