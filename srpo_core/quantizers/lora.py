"""Copy a LoRA in diffusers' naming after checking it against the checkpoint that it was merged into.

The file is diffusers' `pytorch_lora_weights.safetensors`: for each layer `transformer.<layer>.lora_A.weight`
(rank, in) and `transformer.<layer>.lora_B.weight` (out, rank), with the factor alpha / rank included.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import sha256
from srpo_core.errors import DataError
from srpo_core.quantizers.flux_checkpoint import FluxCheckpoint
from srpo_core.weights.files import hashed_file

if TYPE_CHECKING:
    import numpy as np

LORA_FORMAT: Final = "lora"  # the name of a LoRA among the formats, and of its directory
PREFIX: Final = "transformer."
# base + B·A against the merged weights, relative to the largest change: bfloat16 bases and sums in float32
TOLERANCE: Final = 0.02
_COPY_CHUNK: Final = 1 << 20


def carry_lora(source: Path, base: FluxCheckpoint, merged: FluxCheckpoint, target: Path) -> dict[str, Any]:
    """Copy a LoRA file to `target` after comparing base + B·A with `merged`, layer by layer.

    Returns its size in bytes, SHA-256, rank, number of layers, and the largest deviation over the largest change.

    Raises:
        DataError: the file is no such LoRA, or what it adds to the base is not the merged checkpoint.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    worst, ranks = 0.0, set()
    try:
        with safe_open(source, framework="numpy") as file:
            layers = _layers(source, set(file.keys()))
            for layer in layers:
                down, up = (
                    file.get_tensor(f"{PREFIX}{layer}.lora_{side}.weight").astype(np.float32) for side in "AB"
                )
                ranks.add(len(down))
                weight = f"{layer}.weight"
                if not (np.isfinite(down).all() and np.isfinite(up).all()):
                    raise DataError(f"{source}: {layer} holds a NaN or an infinity")
                before, after = _whole(base, weight), _whole(merged, weight)
                change = (up @ down).reshape(before.shape)
                deviation = np.abs(before + change - after).max() / max(np.abs(change).max(), 1e-30)
                worst = max(worst, float(deviation)) if change.any() or (before != after).any() else worst
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{source} is no LoRA of this model ({' '.join(str(error).split())[:200]})") from None
    if worst > TOLERANCE:
        raise DataError(
            f"{source}: base and LoRA differ from the merged checkpoint by {worst:.2g} of the change, more than {TOLERANCE}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with hashed_file(target) as copy, source.open("rb") as original:
        while block := original.read(_COPY_CHUNK):
            copy.write(block)
    assert copy.sha256 == sha256(target), "the digest is that of the written file"
    return {
        "bytes": copy.num_bytes,
        "sha256": copy.sha256,
        "source_sha256": copy.sha256,  # a copy has the digest of its original
        "rank": max(ranks),
        "layers": len(layers),
        "deviation": worst,
    }


def _layers(source: Path, names: set[str]) -> list[str]:
    """List the layers of a LoRA. Raises `DataError` unless each has both matrices and all names are a LoRA's."""
    ends = (".lora_A.weight", ".lora_B.weight")
    odd = sorted(name for name in names if not (name.startswith(PREFIX) and name.endswith(ends)))
    layers = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in names})
    lacking = [layer for layer in layers if any(f"{PREFIX}{layer}{end}" not in names for end in ends)]
    if odd or lacking or not layers:
        what = odd[0] if odd else f"{lacking[0]} without its other matrix" if lacking else "nothing"
        raise DataError(
            f"{source} is no LoRA in diffusers' naming (transformer.<layer>.lora_A.weight and lora_B): it holds {what}"
        )
    return layers


def _whole(checkpoint: FluxCheckpoint, name: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
    import numpy as np

    chunks = [chunk.float32 for chunk in checkpoint.chunks(name, bfl=False)]
    return np.concatenate(chunks).reshape(checkpoint.shape(name, bfl=False))
