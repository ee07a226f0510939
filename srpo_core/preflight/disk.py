"""How many bytes a run leaves on this machine's disk, from its settings and the size of its model."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Final

from srpo_core.config import Settings
from srpo_core.quantizers import QUANTIZERS, chosen_quantizers

COPIES: Final = (
    3  # in the run's workspace, DVC's cache and the checkout, unless the file system can share them
)
FLOAT32: Final = 4
MOMENTS: Final = 8  # AdamW's two, of each trained weight
TYPICAL: Final = (
    "double_blocks.0.img_mlp.0.weight",
    (12288, 3072),
)  # nearly all weights are in matrices of blocks


def bytes_of_run(settings: Settings, weights: int) -> Mapping[str, float]:
    """Bytes at most that the stages of a run leave, by what they are; weights: how many the transformer has.

    Not counted: the data, earlier runs whose workspaces are kept, and what is small beside the weights.
    """
    train, steps = settings.train, len(settings.train.checkpoint_steps)
    moments = (
        settings.resources.keep_checkpoints + 1
    ) * MOMENTS  # the oldest goes when the newest is complete
    files = sum(_bytes_per_weight(name) for name in chosen_quantizers(settings.quantize.formats))
    return {
        "checkpoints": FLOAT32 * steps * weights * COPIES,
        "what training goes on from": 0.0 if train.tune == "lora" else (FLOAT32 * steps + moments) * weights,
        "formats, and their release": files * weights * (COPIES + 1),
    }


def _bytes_per_weight(name: str) -> float:
    quantizer = QUANTIZERS[name]
    encoding = quantizer.encoding(*TYPICAL)
    return encoding.block_bytes / encoding.block * (2 if quantizer.directory else 1)


def count_weights(directory: Path) -> int:
    """How many weights the safetensors files of a directory hold, by their headers alone; 0 where there is none."""
    from safetensors import safe_open

    found = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return found
