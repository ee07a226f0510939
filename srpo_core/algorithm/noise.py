"""Random draws that depend on what they are for, not on who makes them or when.

Every draw is keyed, by (seed, step, global sample index) in training and by (seed, prompt, picture)
in evaluation, so that the number of workers and the order of work do not change it.
"""

import hashlib

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


def keyed_order(count: int, seed: int, *key: int | str) -> list[int]:
    """A permutation of 0 … count-1."""
    order: list[int] = torch.randperm(count, generator=keyed_generator(seed, *key)).tolist()
    return order


def epoch_index(position: int, count: int, seed: int) -> int:
    """The element that stands at `position` of an endless reading of `count` elements, reshuffled each epoch."""
    epoch, place = divmod(position, count)
    return keyed_order(count, seed, "epoch", epoch)[place]
