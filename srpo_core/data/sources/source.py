"""What stage ingest and `srpo data` need of a data set, whatever its format."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from srpo_core.config import IngestSettings
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.images import ImageSource
from srpo_core.data.rules import Findings
from srpo_core.data.sources.rows import visible_files


class Source(Protocol):
    """A data set on disk.

    A record that breaks a rule is reported to `Findings` and left out (see `Record`). A file that cannot be read is a
    `DataError`. Every record that is read is counted by `Findings.count`.
    """

    def choices(self, split: str) -> Iterator[Choice]:
        """Yield the records of `train` or `test` in the order of the files, without all of them in memory."""
        ...

    def benchmark(self, is_trained: Callable[[str], bool]) -> Iterable[BenchmarkPrompt]:
        """Yield the prompts to evaluate with. `benchmark_prompts` reports those that are doubled or trained on.

        is_trained: whether a prompt is in the split train, in any spelling; for data sets whose prompts to evaluate with
            are those of the split test, in which such records were reported before.
        """
        ...

    def images(self, split: str) -> AbstractContextManager[ImageSource]:
        """Open the images of a split, by the names that its records use."""
        ...


@dataclass(frozen=True)
class SourceFormat:
    """One entry of the registry `SOURCES`.

    open: opens a data set: its path, the settings of ingest, and what collects the problems of its records.
    collect: copies the data set at a path to an empty directory as a few large files, which `open` reads, too. The same
        data give the same bytes.
    check_columns: raises `ConfigError` if the data set cannot have the columns of `ingest.columns`.
    has_pairs: whether it has pairs of images that people compared; the checks of rewards need them.
    has_images: whether it has real images of its prompts; `train.rollout.source: offline` needs them.
    layout: what to give as a source in this format, for messages.
    files: lists what `collect` copies of a data set; by default all files of a directory that are not hidden.
    """

    open: Callable[[Path, IngestSettings, Findings], Source]
    collect: Callable[[Path, Path], None]
    check_columns: Callable[[Mapping[Any, str]], None]
    has_pairs: bool
    has_images: bool
    layout: str
    files: Callable[[Path], Sequence[Path]] = visible_files
