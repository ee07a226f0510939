"""Estimate the bytes that a run leaves on this machine's disk, from its settings and the size of its model."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Final

from srpo_core.config import Settings
from srpo_core.errors import DataError
from srpo_core.quantizers import Format, chosen_quantizers
from srpo_core.training.steps import checkpoint_steps
from srpo_core.weights.safetensors_header import read_safetensors_header

# in the run's workspace, in DVC's cache and in the checkout, unless the file system shares them
COPIES: Final = 3
FLOAT32: Final = 4
GIGABYTE: Final = 1e9
MOMENTS: Final = 8  # AdamW's two moments of each trained weight
# nearly all weights are in matrices of this kind
TYPICAL: Final = ("double_blocks.0.img_mlp.0.weight", (12288, 3072))


def bytes_of_run(settings: Settings, weights: int) -> Mapping[str, float]:
    """Return an upper bound of the bytes that a run writes, by kind of file.

    weights: number of weights of the transformer. Not counted: the data, the kept workspaces of earlier runs, and files
    that are small beside the weights.
    """
    train, steps = settings.train, len(checkpoint_steps(settings.train))
    # the oldest state is deleted when the newest is complete
    moments = (settings.resources.keep_checkpoints + 1) * MOMENTS
    trained = FLOAT32 * steps * (2 if train.ema else 1)  # the weights, and their moving averages
    adapters = train.tune == "lora"
    return {
        # of the adapters, which are small beside the weights, the base is merged with those of one checkpoint at a time
        "checkpoints": FLOAT32 * weights * (1 if adapters else steps * COPIES),
        "state to resume training": 0.0 if adapters else (trained + moments) * weights,
        "formats, and their release": bytes_of_formats(settings, weights) * (COPIES + 1),
        "images that later runs reuse": settings.resources.kept_images_gb * GIGABYTE,
    }


def bytes_of_formats(settings: Settings, weights: int) -> float:
    """Return the bytes of the files of all formats in the settings."""
    formats = chosen_quantizers(settings.quantize.formats).values()
    return weights * sum(_bytes_per_weight(entry) for _, entry in formats)


def _bytes_per_weight(entry: Format) -> float:
    encoding = entry.encoding(*TYPICAL)
    return encoding.block_bytes / encoding.block * (2 if entry.directory else 1)


def count_weights(directory: Path) -> int:
    """Count the weights in the safetensors files of a directory, from their headers.

    Returns 0 if there is no file, or one that `check_weights` reports: then nothing is known about their number.
    """
    found = 0
    for path in sorted(directory.glob("*.safetensors")):
        try:
            tensors, _ = read_safetensors_header(path)
        except DataError:
            return 0
        found += sum(prod(tensor.shape) for tensor in tensors.values())
    return found
