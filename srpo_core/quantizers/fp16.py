"""float16 for every tensor, clamped to ±65504: for GPUs without bfloat16."""

from typing import Final

from srpo_core.quantizers.conversion import Format
from srpo_core.quantizers.encodings import F16

# Relative output error: about 5e-4.
FORMAT: Final = Format(lambda _name, _shape: F16, "safetensors", directory=True)
