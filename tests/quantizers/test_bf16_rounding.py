"""How much of the change by a full-size preset survives bfloat16, where small changes are rounded away.

AdamW moves a weight by at most the learning rate per step, so `rate · steps` bounds the change; a random walk moves
`rate · √steps`.
The figures are printed with `-s`; weights of FLUX.1-dev's blocks have the order of magnitude 0.02.
"""

import math

import numpy as np
import pytest
import torch

from srpo_core.config import PROFILES_DIR, load_settings
from srpo_core.quantizers.chunks import Chunk
from srpo_core.quantizers.encodings import bfloat16, bfloat16_values

OUT, IN, SIZE = 512, 3072, 0.02
PRESETS = ("flux1_dev", "flux1_dev_lora")


def rounded(weights):
    values = bfloat16_values(bfloat16(Chunk(weights.numpy().ravel().astype(np.float32), "F32")))
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(weights.shape)


def change(train, reach):
    """Return the change of a matrix if every trained entry moves `reach` steps with a random sign."""
    far = train.optimizer.learning_rate * reach
    if train.tune == "full":
        return far * torch.randn(OUT, IN).sign()
    rank = train.lora.rank
    a = (2 * torch.rand(rank, IN) - 1) / math.sqrt(
        IN
    )  # initialized as in peft: uniform, scaled by the number of inputs
    return train.lora.alpha / rank * far * torch.randn(OUT, rank).sign() @ a


def kept(train, reach):
    """Return the share of the change that remains in bfloat16, by projection."""
    torch.manual_seed(0)
    base = rounded(SIZE * torch.randn(OUT, IN))
    moved = change(train, reach)
    return float(((rounded(base + moved) - base) * moved).sum() / moved.square().sum())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_largest_change_that_a_preset_can_learn_survives_in_bf16(preset):
    whole = load_settings(PROFILES_DIR / f"{preset}.yaml")
    steps = whole.train.steps
    at_most, at_random = (kept(whole.train, reach) for reach in (steps, math.sqrt(steps)))
    print(f"{preset}: bf16 keeps {at_most:.2f} of the largest change, {at_random:.2f} of a random walk's")
    assert at_random < at_most
    assert at_most >= whole.quantize.formats["bf16"].min_gain_kept
