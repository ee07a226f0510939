"""A bar for work that takes a while: drawn on a terminal, nothing elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error up to `total`; yields what moves it on by so much."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(label, total=total)
        yield lambda done: progress.advance(bar, done)
