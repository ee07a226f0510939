"""A bar for work that takes a while: drawn on a terminal, nothing elsewhere."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def with_progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on and count them in a bar on standard error; `total` when they have no length."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        items, label, total=total, console=console, transient=True, disable=not console.is_terminal
    )
