"""float8_e4m3fn for the weights of the blocks' linear layers, bfloat16 for the rest; plain, or with a scale per tensor.

These are two formats with different names, because a loader may confuse them: diffusers loads a scaled file without a
warning and then generates noise.
"""

from typing import Final

from srpo_core.quantizers.conversion import Format, is_block_weight
from srpo_core.quantizers.encodings import BF16, FP8, FP8_SCALED, Encoding


def _plain(name: str, shape: tuple[int, ...]) -> Encoding:
    return FP8 if is_block_weight(name, shape) else BF16


def _scaled(name: str, shape: tuple[int, ...]) -> Encoding:
    return FP8_SCALED if is_block_weight(name, shape) else BF16


# Relative output error: about 3e-2; casting every tensor would double it.
PLAIN: Final = Format(_plain, "safetensors")
# As in ComfyUI: `X.weight_scale` beside each `X.weight`, and the layers listed in the file's metadata.
SCALED: Final = Format(_scaled, "safetensors")
