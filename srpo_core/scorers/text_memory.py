"""A cache of text features: a training run uses the same texts again and again."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor
from torch.amp import autocast, is_autocast_available

CAPACITY: Final = 8192


class TextMemory:
    """Cache features by text, so that a frozen text tower runs once per distinct text.

    It keeps at most `capacity` texts and drops the oldest first.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def recall(
        self, texts: Sequence[str], encode: Callable[[str], Tensor], device: torch.device | str
    ) -> Tensor:
        """Return features (B, D) of `texts` on `device`, without gradients; `encode` computes (D,) for a new text."""
        # Move each row: some may have been encoded before the towers moved to another device.
        return torch.stack([self._recall(text, encode, torch.device(device)).to(device) for text in texts])

    def _recall(self, text: str, encode: Callable[[str], Tensor], device: torch.device) -> Tensor:
        # Encode one text at a time: in a batch the last bits would depend on the other texts, and so on which texts
        # an earlier step or another worker had encoded.
        if text not in self._features:
            if len(self._features) >= self.capacity:
                self._features.pop(next(iter(self._features)))
            with without_autocast(device):  # kept for all later calls, and computed once
                self._features[text] = encode(text)
        return self._features[text]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off; on the meta device there is none."""
    kind = device.type
    return autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
