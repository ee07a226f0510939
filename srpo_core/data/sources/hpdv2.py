"""The format `hpdv2`: HPDv2's own files, as on the hub (huggingface.co/datasets/ymhao/HPDv2).

`train.json`, `test.json`, `benchmark/*.json`, and the images of each split as `train/`, `train.tar` or `train.tar.gz`.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from srpo_core.config import IngestSettings
from srpo_core.data.choices import SPLITS, BenchmarkPrompt, Choice
from srpo_core.data.hpd import read_benchmark, read_choices
from srpo_core.data.images import ImageSource, find_images, open_images
from srpo_core.data.rules import Findings
from srpo_core.data.sources.packing import copy_images
from srpo_core.data.sources.rows import visible_files
from srpo_core.data.sources.source import SourceFormat
from srpo_core.errors import ConfigError, DataError

LAYOUT: Final = "a directory with train.json, test.json, benchmark/*.json and the images of both splits"


class HpdSource:
    """HPDv2 in a directory. See `Source`."""

    def __init__(self, where: Path, ingest: IngestSettings, findings: Findings) -> None:
        require_layout(where)
        if ingest.check_images == "all":
            require_images(where)
        self._where, self._findings = where, findings

    def choices(self, split: str) -> Iterator[Choice]:
        """Yield the records of `train.json` or `test.json`."""
        return read_choices(self._where, split, self._findings)

    def benchmark(self, is_trained: Callable[[str], bool]) -> Iterator[BenchmarkPrompt]:
        """Yield the prompts of `benchmark/*.json`."""
        del is_trained
        return read_benchmark(self._where, self._findings)

    def images(self, split: str) -> AbstractContextManager[ImageSource]:
        """Open the images of a split."""
        return open_images(self._where, split)


def require_layout(where: Path) -> None:
    """Raise `DataError` if a directory lacks a list of HPDv2, before anything is read."""
    if where.is_file():
        raise DataError(f"{where} is a file, and the format hpdv2 is a directory: give {LAYOUT}")
    for split in SPLITS:
        if not (where / f"{split}.json").is_file():
            below = next(where.glob(f"*/{split}.json"), None)
            hint = f"; {below.parent} has one" if below else ""
            raise DataError(f"{where / split}.json is missing: give {LAYOUT}{hint}")
    if not any((where / "benchmark").glob("*.json")):
        raise DataError(
            f"{where / 'benchmark'} contains no list of prompts: put HPDv2's benchmark/*.json there"
        )


def require_images(where: Path) -> None:
    """Raise `DataError` if the images of a split are missing, or are there in two forms."""
    for split in SPLITS:
        find_images(where, split)


def collect(source: Path, target: Path) -> None:
    """Copy the JSON lists, and one archive of images per split.

    Raises:
        DataError: a part of the source is missing, or a split has its images twice.
    """
    require_layout(source)
    require_images(source)
    for path in _lists(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for split in SPLITS:
        copy_images(source, split, target)


def files(source: Path) -> list[Path]:
    """List the files that `collect` copies. Raises its errors."""
    require_layout(source)
    images = [find_images(source, split) for split in SPLITS]
    return [*_lists(source), *(path for one in images for path in visible_files(one))]


def _lists(source: Path) -> list[Path]:
    return [source / f"{split}.json" for split in SPLITS] + sorted(source.glob("benchmark/*.json"))


def check_columns(columns: Mapping[Any, str]) -> None:
    """Refuse columns: HPDv2's files have fixed keys."""
    if columns:
        raise ConfigError("ingest.columns is for tables, and HPDv2's files have fixed keys: set it to {}")


HPDV2: Final = SourceFormat(
    open=HpdSource,
    collect=collect,
    check_columns=check_columns,
    has_pairs=True,
    has_images=True,
    layout=LAYOUT,
    files=files,
)
