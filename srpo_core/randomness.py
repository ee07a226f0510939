"""Random draws that depend on what they are for, not on who makes them or when.

Every draw is keyed, by (seed, step, global sample index) in training and by (seed, prompt, image)
in evaluation, so that the number of workers and the order of work do not change it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def keyed_generator(seed: int, *key: int | str) -> torch.Generator:
    """A CPU generator whose state is a hash of (seed, *key)."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=False) >> 1)


def keyed_noise(shape: tuple[int, ...], seed: int, *key: int | str) -> Tensor:
    """Standard normal noise of `shape`, float32 on the CPU, the same for the same (seed, *key)."""
    return torch.randn(shape, generator=keyed_generator(seed, *key))


def keyed_integer(low: int, high: int, seed: int, *key: int | str) -> int:
    """An integer drawn uniformly from low to high, both inclusive."""
    return int(torch.randint(low, high + 1, (), generator=keyed_generator(seed, *key)))


def keyed_share(seed: int, *key: int | str) -> float:
    """A number drawn uniformly from [0, 1)."""
    return float(torch.rand((), generator=keyed_generator(seed, *key)))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step for some samples of the global batch, by their global indices."""

    seed: int
    step: int
    samples: Sequence[int]

    def integers(self, what: tuple[int | str, ...], low: int, high: int) -> list[int]:
        """An integer from low to high, both inclusive, for each sample."""
        return [keyed_integer(low, high, self.seed, *what, self.step, i) for i in self.samples]

    def noise(self, what: tuple[int | str, ...], shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise (B, *shape), of its own for each sample."""
        return torch.stack([keyed_noise(shape, self.seed, *what, self.step, i) for i in self.samples])


def keyed_order(count: int, seed: int, *key: int | str) -> list[int]:
    """A permutation of 0 … count-1."""
    order: list[int] = torch.randperm(count, generator=keyed_generator(seed, *key)).tolist()
    return order


def epoch_index(position: int, count: int, seed: int) -> int:
    """The element that stands at `position` of an endless reading of `count` elements, reshuffled each epoch."""
    epoch, place = divmod(position, count)
    return keyed_order(count, seed, "epoch", epoch)[place]
