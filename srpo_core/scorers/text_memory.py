"""Features of texts that were encoded before: a training run sees the same texts over and over."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

CAPACITY: Final = 8192


class TextMemory:
    """Features by text, so that a frozen text tower runs once per distinct text.

    It holds `capacity` texts at most and forgets the oldest first.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def recall(
        self, texts: Sequence[str], encode: Callable[[str], Tensor], device: torch.device | str
    ) -> Tensor:
        """Features (B, D) of `texts` on `device`, without gradients; `encode` gives (D,) for a new text."""
        # Each row is moved: some may have been encoded before the towers went to another device.
        return torch.stack([self._recall(text, encode).to(device) for text in texts])

    def _recall(self, text: str, encode: Callable[[str], Tensor]) -> Tensor:
        # One text at a time: in a batch the last bits would depend on its neighbours, and so on
        # which texts an earlier step or another worker happened to have encoded.
        if text not in self._features:
            if len(self._features) >= self.capacity:
                self._features.pop(next(iter(self._features)))
            self._features[text] = encode(text)
        return self._features[text]
