"""float8_e4m3fn without scales: the weights of Linear layers, all else bfloat16.

"Plain" and "scaled" fp8 are different formats: diffusers loads a scaled file without a word and then
draws noise. This is the plain one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from srpo_core.quantizers.checkpoint_files import CastLoss, empty_model, rewrite

# In the original names: img_in, txt_in, time_in / vector_in / guidance_in, final_layer. They are small,
# and quantizing them doubles the error.
HIGH_PRECISION: Final = ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out")


def write_fp8_e4m3fn(source: Path, target: Path) -> CastLoss:
    """Write a diffusers transformer directory with its Linear weights in float8_e4m3fn, clamped to ±448.

    Relative output error about 3e-2; casting every tensor would double it.

    Raises:
        ArtifactError: the source is damaged or holds a NaN.
    """
    import torch

    model = empty_model(source)
    dtypes = dict.fromkeys(model.state_dict(), torch.bfloat16)
    dtypes |= dict.fromkeys(linear_weights(model), torch.float8_e4m3fn)
    return rewrite(source, target, dtypes, own=torch.float8_e4m3fn)


def linear_weights(model: Any) -> Iterator[str]:
    """Names of the weights of Linear layers outside the high-precision set."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] not in HIGH_PRECISION:
            yield f"{name}.weight"
