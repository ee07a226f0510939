"""A data set of tables: pairs, prompts, or images with captions. See `Source`."""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

from srpo_core.config import IngestSettings
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.images import ImageSource
from srpo_core.data.rules import Findings
from srpo_core.data.sources.layouts import Layout, read_table, require_columns
from srpo_core.data.sources.rows import SUFFIXES, Table, is_hidden, open_table
from srpo_core.data.sources.table_images import PACKED, open_table_images
from srpo_core.data.splits import is_held_out
from srpo_core.errors import DataError
from srpo_core.prompts import normal_form

# the names of a published split that is not trained on; the first that exists is read
HELD_OUT: Final = ("test", "test_unique", "validation", "validation_unique", "valid", "val", "eval", "dev")
_SPLIT: Final = re.compile(
    rf"(?:^|[-_./])(train|{'|'.join(sorted(HELD_OUT, key=len, reverse=True))})(?=$|[-_./\d])"
)
# files that describe a data set on the hub
_ABOUT: Final = frozenset(
    {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "README.txt"}
)

OpenTable = Callable[[], Table]
_log = logging.getLogger(__name__)


class TableSource:
    """Tables by the split that their names say, empty if none. See `Source`.

    If no name says a held-out split, `ingest.test_share` of the prompts is held out, chosen by a hash.
    """

    def __init__(
        self,
        root: Path,
        ingest: IngestSettings,
        layouts: Sequence[Layout],
        found: Mapping[str, Sequence[OpenTable]],
        findings: Findings,
    ) -> None:
        self._root, self._layouts, self._columns = root, layouts, ingest.columns
        self._test_share = ingest.test_share
        self._findings = findings
        self._passed: set[str] = (
            set()
        )  # the splits whose tables were read, so that their problems are reported
        require_columns(layouts, ingest.columns)
        self._tables = self._train_and_test(found)

    def choices(self, split: str) -> Iterator[Choice]:
        """Yield the records of a split."""
        return (choice for choice, _ in self._records(split))

    def benchmark(self, is_trained: Callable[[str], bool]) -> list[BenchmarkPrompt]:
        """Return the prompts of the held-out records that are not trained on, each once."""
        prompts: dict[str, BenchmarkPrompt] = {}
        for choice, style in self._records("test"):
            if not is_trained(choice.prompt):
                entry = BenchmarkPrompt(choice.file, choice.record, choice.prompt, style)
                prompts.setdefault(normal_form(choice.prompt), entry)
        if not prompts:
            raise DataError(
                f"{self._root}: no prompt is held out to evaluate with: add records, or raise ingest.test_share"
            )
        return list(prompts.values())

    def images(self, split: str) -> AbstractContextManager[ImageSource]:
        """Open the images."""
        del split
        return open_table_images(self._root)

    def _records(self, split: str) -> Iterator[tuple[Choice, str]]:
        divided = "test" not in self._tables
        own = "train" if divided else split
        findings = self._findings.of_another_pass() if own in self._passed else self._findings
        identities: dict[str, str] = {}
        for open_one in self._tables[own]:
            for choice, style in read_table(self._layouts, open_one(), self._columns, findings, identities):
                if not divided or is_held_out(choice.prompt, self._test_share) == (split == "test"):
                    yield choice, style
        self._passed.add(own)

    def _train_and_test(self, found: Mapping[str, Sequence[OpenTable]]) -> dict[str, Sequence[OpenTable]]:
        """Return the tables to train on, and those to hold out if there are any."""
        train, test = chosen_splits(found)
        for name in sorted(found.keys() - {train, test}):
            _log.warning("%s: %d files of %s are not read", self._root, len(found[name]), name or "no split")
        if test is None and not self._test_share:
            raise DataError(
                f"{self._root}: no file is named after a held-out split ({', '.join(HELD_OUT)}), and "
                "ingest.test_share is 0: raise it"
            )
        return {"train": found[train]} if test is None else {"train": found[train], "test": found[test]}


def chosen_splits(found: Collection[str]) -> tuple[str, str | None]:
    """Return which of the splits of a data set is trained on, and which is held out, if one is; empty is no split.

    found: at least one of `train`, the names of `HELD_OUT` and the empty text.
    """
    held_out = next((name for name in HELD_OUT if name in found), None)
    train = next((name for name in ("train", "") if name in found), None)
    if train is not None:
        return train, held_out
    assert held_out is not None
    return held_out, None


def open_tables(
    where: Path,
    ingest: IngestSettings,
    layouts: Sequence[Layout],
    findings: Findings,
    suffixes: Collection[str] = SUFFIXES - {".txt"},
) -> TableSource:
    """Open a table, or the tables in a directory, as a data set. suffixes: of the kinds of tables.

    Raises:
        ConfigError: `ingest.columns` does not fit the layouts.
        DataError: there is no table, or nothing to hold out.
    """
    root = where if where.is_dir() else where.parent
    found: dict[str, list[OpenTable]] = {}
    for path in find_tables(where, suffixes):
        name = path.relative_to(root).as_posix()
        found.setdefault(split_of(name), []).append(partial(open_table, path, name))
    return TableSource(root, ingest, layouts, found, findings)


def find_tables(where: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Return a file, or the tables in a directory, sorted. suffixes: of the kinds of files to look for.

    Raises:
        DataError: there is none, or the file is of an unknown kind.
    """
    if where.is_file():
        if where.suffix not in suffixes:
            raise DataError(f"{where}: unknown kind of file: known are {', '.join(sorted(suffixes))}")
        return [where]
    tables = [
        path
        for path in sorted(where.rglob("*"))
        if path.suffix in suffixes
        and path.is_file()
        and path.name not in _ABOUT | {PACKED}
        and not is_hidden(path.relative_to(where).as_posix())
    ]
    kinds = {path.suffix for path in tables}
    if ".parquet" in kinds:  # a directory of the hub has small files of other kinds beside
        if unread := [path for path in tables if path.suffix != ".parquet"]:
            _log.warning(
                "%s: %d files beside its parquet files are not read, first %s",
                where,
                len(unread),
                unread[0].name,
            )
        tables = [path for path in tables if path.suffix == ".parquet"]
    if not tables:
        saved = next(where.rglob("*.arrow"), None)
        hint = f"; {saved.name} is of the library datasets: write it with to_parquet" if saved else ""
        raise DataError(f"{where}: has no table: known are {', '.join(sorted(suffixes))}{hint}")
    return tables


def split_of(name: str) -> str:
    """Return the split in the name of a file, as `train` in `data/train-00000-of-00002.parquet`; empty if there is none."""
    found = _SPLIT.findall(name)
    return found[-1] if found else ""
