"""Choose some of many prompts or pairs."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Choose `count` evenly spaced items (all, if fewer). Test prompts are sorted by style: the first have only one."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def sampled_places(total: int, limit: int | None) -> list[int]:
    """Choose `limit` of `total` places (all, if fewer or None) at random but always the same, in their order.

    Neighbouring pairs share a prompt, so the first ones would cover only a few prompts.
    """
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(Random(0).sample(range(total), limit))
