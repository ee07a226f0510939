"""Choose some of many prompts."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Choose `count` evenly spaced items (all, if fewer). Test prompts are sorted by style: the first have only one."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
