"""GGUF in BFL's names, as ComfyUI-GGUF and diffusers load it.

1-D tensors and the layers outside the blocks are float32: loaders split them, and they are small.
"""

from typing import Final

from srpo_core.quantizers.blocks import encoding_for_row
from srpo_core.quantizers.conversion import MATRIX, Format, is_block_weight
from srpo_core.quantizers.encodings import BF16, F16, F32, Encoding


def _whole(encoding: Encoding, file_type: str) -> Format:
    """Every matrix in one float type."""
    return Format(lambda _name, shape: encoding if len(shape) == MATRIX else F32, "gguf", file_type=file_type)


def _blocks(dtype: str, file_type: str, *, qkv: str | None = None) -> Format:
    """The blocks' matrices in a type of llama.cpp; qkv: the type of the joined q, k, v projection, if it differs."""

    def choose(name: str, shape: tuple[int, ...]) -> Encoding:
        if not is_block_weight(name, shape):
            return F32
        return encoding_for_row(qkv if qkv and "attn.qkv." in name else dtype, shape[1])

    return Format(choose, "gguf", file_type=file_type)


GGUF_F16: Final = _whole(F16, "MOSTLY_F16")
GGUF_BF16: Final = _whole(BF16, "MOSTLY_BF16")
Q8_0: Final = _blocks("Q8_0", "MOSTLY_Q8_0")
Q6_K: Final = _blocks("Q6_K", "MOSTLY_Q6_K")
# The _M of llama.cpp's mixtures: the q, k, v projection gets the next better type.
Q5_K_M: Final = _blocks("Q5_K", "MOSTLY_Q5_K_M", qkv="Q6_K")
Q5_0: Final = _blocks("Q5_0", "MOSTLY_Q5_0")
Q4_K_M: Final = _blocks("Q4_K", "MOSTLY_Q4_K_M", qkv="Q5_K")
Q4_0: Final = _blocks("Q4_0", "MOSTLY_Q4_0")
