"""bfloat16: every tensor; the file that diffusers users and trainers load."""

from typing import Final

from srpo_core.quantizers.conversion import Format
from srpo_core.quantizers.encodings import BF16

# Relative output error about 4e-3 of float32 weights, none of bfloat16 ones.
FORMAT: Final = Format(lambda _name, _shape: BF16, "safetensors", directory=True)
# The file in BFL names alone, half the work: for those who have a diffusers directory already.
SINGLE: Final = Format(lambda _name, _shape: BF16, "safetensors")
