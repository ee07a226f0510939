"""In which order a rater sees the items of a task, and which image is on the left.

Both are drawn by a hash of (seed, rater, item), so they do not depend on when and where a rater answers. `page.js` computes the
same hash for tasks that are exported; tests/rating/test_presentation.py compares the two.
"""

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

_BITS: Final = 0xFFFFFFFF
_OFFSET: Final = 0x811C9DC5
_PRIME: Final = 0x01000193
_MIX: Final = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))


class Ordered(Protocol):
    """An item with its place in the task: items of a lower phase come first."""

    @property
    def id(self) -> str:
        """Random name of the item."""

    @property
    def phase(self) -> int:
        """0, 1 or 2; the images of an item of phase 0 may be repeated in phase 2."""


Item = TypeVar("Item", bound=Ordered)


def draw(key: str) -> int:
    """Hash an ASCII key to 32 bits: FNV-1a, followed by the last mixing steps of MurmurHash3."""
    value = _OFFSET
    for sign in key.encode("ascii"):
        value = (value ^ sign) * _PRIME & _BITS
    for shift, factor in _MIX:
        value = (value ^ value >> shift) * factor & _BITS
    return value


def ordered(items: Iterable[Item], seed: int, rater: str) -> list[Item]:
    """Return the items in the order in which a rater sees them."""
    return sorted(items, key=lambda item: (item.phase, draw(f"{seed}/order/{rater}/{item.id}"), item.id))


def a_is_left(seed: int, rater: str, item: str) -> bool:
    """Whether a rater sees the item's image "a" on the left."""
    return draw(f"{seed}/side/{rater}/{item}") % 2 == 0
