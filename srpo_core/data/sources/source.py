"""What stage ingest and `srpo data` need of a data set, whatever its format."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from srpo_core.config import IngestSettings
from srpo_core.data.choices import BenchmarkPrompt, Choice, Place
from srpo_core.data.images import ImageSource


class Source(Protocol):
    """A data set on disk. Every method raises `DataError` for a file or record that breaks a rule."""

    def choices(self, split: str) -> Iterator[Choice]:
        """Yield the records of `train` or `test` in the order of the files, without all of them in memory."""
        ...

    def benchmark(self, train: Mapping[str, Place]) -> list[BenchmarkPrompt]:
        """Return the prompts to evaluate with, none of which is trained on.

        train: the prompts of the split train with the places of their first records.
        """
        ...

    def images(self, split: str) -> AbstractContextManager[ImageSource]:
        """Open the images of a split, by the names that its records use."""
        ...


@dataclass(frozen=True)
class SourceFormat:
    """One entry of the registry `SOURCES`.

    open: opens a data set: its path, and the settings of ingest.
    collect: copies the data set at a path to an empty directory as a few large files, which `open` reads, too. The same
        data give the same bytes.
    check_columns: raises `ConfigError` if the data set cannot have the columns of `ingest.columns`.
    has_pairs: whether it has pairs of images that people compared; the checks of rewards need them.
    has_images: whether it has real images of its prompts; `train.rollout.source: offline` needs them.
    layout: what to give as a source in this format, for messages.
    """

    open: Callable[[Path, IngestSettings], Source]
    collect: Callable[[Path, Path], None]
    check_columns: Callable[[Mapping[Any, str]], None]
    has_pairs: bool
    has_images: bool
    layout: str
