"""HPDv2's JSON files, record by record (Wu et al. 2023, arXiv 2306.09341).

A source directory contains `train.json`, `test.json`, `benchmark/*.json` and the images (see `images`). The text of
one file is in memory (116 MB for the full train.json), but never all of its records. A record that breaks a rule is
reported to `Findings` with file, record and rule, and left out.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.json_lists import Unreadable, read_list
from srpo_core.data.records import SURROGATE, LeftOut, Record
from srpo_core.data.rules import Findings, one_line
from srpo_core.errors import DataError

_PAIR: Final = 2
DRAWBENCH: Final = "drawbench"


def read_choices(source: Path, split: str, findings: Findings) -> Iterator[Choice]:
    """Read `train.json` or `test.json` of a source directory.

    Raises:
        DataError: the file is missing or not a JSON list, or a record breaks a rule and ends the run.
    """
    path = source / f"{split}.json"
    file, read = str(path), _READERS[split]
    for index, value, text in read_list(path):
        findings.count(file)
        try:
            choice = read(Record(findings, file, index, value, text))
        except LeftOut:
            continue
        yield choice


def read_benchmark(source: Path, findings: Findings) -> Iterator[BenchmarkPrompt]:
    """Read the lists of styles in `benchmark/`, in the order of their names.

    HPDv2 also has DrawBench's list there, but scores it separately, so it is not a style of the benchmark.

    Raises:
        DataError: there is no list, or an entry breaks a rule and ends the run.
    """
    directory = source / "benchmark"
    paths = sorted(path for path in directory.glob("*.json") if path.stem != DRAWBENCH)
    if not paths:
        raise DataError(f"{directory} contains no list of prompts: put HPDv2's benchmark/*.json there")
    for path in paths:
        if SURROGATE.search(path.stem):
            raise DataError(f"{one_line(str(path))}: the name of the list is not UTF-8: rename it")
        for index, value, text in read_list(path):
            findings.count(str(path))
            entry = value if isinstance(value, Unreadable) else {"prompt": value}
            try:
                prompt = Record(findings, str(path), index, entry, text).prompt()
            except LeftOut:
                continue
            yield BenchmarkPrompt(str(path), index, prompt, path.stem)


def _train_choice(record: Record) -> Choice:
    prompt, images = record.prompt(), record.image_names("file_path", "train")
    preference = record.numbers("human_preference")
    if len(images) != _PAIR:
        record.refuse("broken_record", f"file_path: exactly two images are required, found {len(images)}")
    if sorted(preference) != [0, 1]:
        found = list(preference)[:_SHOWN]
        record.refuse("broken_record", f"human_preference: must be [1, 0] or [0, 1], found {found}")
    return Choice(record.file, record.index, prompt, images, tuple(1 - chosen for chosen in preference))


def _test_choice(record: Record) -> Choice:
    prompt, images = record.prompt(), record.image_names("image_path", "test")
    ranks = record.numbers("rank")
    if len(images) < _PAIR:
        record.refuse("broken_record", f"image_path: at least two images are required, found {len(images)}")
    rows = record.nested("raw_annotations") if record.has("raw_annotations") else ()  # HPDv2 spells it with s
    annotations = tuple(row.numbers("rank") for row in rows)
    for name, given in [("rank", ranks), *(("raw_annotations", row) for row in annotations)]:
        if len(given) != len(images):
            record.refuse(
                "broken_record", f"{name}: {len(given)} ranks for {len(images)} images in image_path"
            )
    return Choice(record.file, record.index, prompt, images, ranks, annotations)


_SHOWN: Final = 10
_READERS: Final[Mapping[str, Callable[[Record], Choice]]] = MappingProxyType(
    {"train": _train_choice, "test": _test_choice}
)
