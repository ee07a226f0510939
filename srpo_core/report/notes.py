"""What the figures that training logs mean, in words for the page. Metrics have their notes in the registry."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TRAINING_NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "loss": "what the optimizer minimizes",
        "learning_rate": "learning rate of the step",
        "grad_norm": "norm of the gradient before clipping",
        "reward_denoise": "relative reward of the denoise branch",
        "reward_inversion": "relative reward of the inversion branch",
    }
)
