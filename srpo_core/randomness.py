"""Random numbers that depend only on a key.

The key is (seed, purpose, step, global sample index) in training and (seed, prompt, image) in evaluation, so neither
the number of workers nor the order of work changes them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def keyed_generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator that is seeded with a hash of (seed, *key)."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=False) >> 1)


def keyed_noise(shape: tuple[int, ...], seed: int, *key: int | str) -> Tensor:
    """Draw standard normal noise of `shape`, float32 on the CPU, the same for the same (seed, *key)."""
    return torch.randn(shape, generator=keyed_generator(seed, *key))


def keyed_integer(low: int, high: int, seed: int, *key: int | str) -> int:
    """Draw an integer uniformly from low to high, both inclusive."""
    return int(torch.randint(low, high + 1, (), generator=keyed_generator(seed, *key)))


def keyed_share(seed: int, *key: int | str) -> float:
    """Draw a number uniformly from [0, 1)."""
    return float(torch.rand((), generator=keyed_generator(seed, *key)))


@dataclass(frozen=True)
class Draws:
    """Draws the random numbers of one step for some samples of the global batch, given by global index."""

    seed: int
    step: int
    samples: Sequence[int]

    def integers(self, what: tuple[int | str, ...], low: int, high: int) -> list[int]:
        """Draw an integer from low to high, both inclusive, for each sample."""
        return [keyed_integer(low, high, self.seed, *what, self.step, i) for i in self.samples]

    def noise(self, what: tuple[int | str, ...], shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise (B, *shape), independent for each sample."""
        return torch.stack([keyed_noise(shape, self.seed, *what, self.step, i) for i in self.samples])

    def orders(self, what: tuple[int | str, ...], count: int) -> list[list[int]]:
        """Draw a permutation of 0 … count-1 for each sample."""
        return [keyed_order(count, self.seed, *what, self.step, i) for i in self.samples]


def keyed_order(count: int, seed: int, *key: int | str) -> list[int]:
    """Draw a permutation of 0 … count-1."""
    order: list[int] = torch.randperm(count, generator=keyed_generator(seed, *key)).tolist()
    return order


def epoch_index(position: int, count: int, seed: int) -> int:
    """Return the index at `position` of an endless sequence of `count` elements, reshuffled each epoch."""
    epoch, place = divmod(position, count)
    return keyed_order(count, seed, "epoch", epoch)[place]
