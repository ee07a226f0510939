"""float8_e4m3fn: the weights of the blocks' Linear layers, all else bfloat16; plain, or with a scale per tensor.

Two formats, which no loader may take for each other: diffusers loads a scaled file without a word and then
draws noise.
"""

from typing import Final

from srpo_core.quantizers.conversion import Format, is_block_weight
from srpo_core.quantizers.encodings import BF16, FP8, FP8_SCALED, Encoding


def _plain(name: str, shape: tuple[int, ...]) -> Encoding:
    return FP8 if is_block_weight(name, shape) else BF16


def _scaled(name: str, shape: tuple[int, ...]) -> Encoding:
    return FP8_SCALED if is_block_weight(name, shape) else BF16


# Relative output error about 3e-2; casting every tensor would double it.
PLAIN: Final = Format(_plain, "safetensors")
# ComfyUI's: `X.weight_scale` beside each `X.weight`, and the layers named in the file's metadata.
SCALED: Final = Format(_scaled, "safetensors")
