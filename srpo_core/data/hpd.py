"""HPDv2's JSON files, record by record (Wu et al. 2023, arXiv 2306.09341).

A source directory contains `train.json`, `test.json`, `benchmark/*.json` and the images (see `images`). The text of
one file is in memory (116 MB for the full train.json), but never all of its records. A record that breaks a rule is a
`DataError` that names file, record and rule.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from srpo_core.data.choices import BenchmarkPrompt, Choice, Place
from srpo_core.data.image_names import plain_name
from srpo_core.errors import DataError
from srpo_core.prompts import normal_form

_PAIR: Final = 2
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


DRAWBENCH: Final = "drawbench"


def read_choices(source: Path, split: str) -> Iterator[Choice]:
    """Read `train.json` or `test.json` of a source directory.

    Raises:
        DataError: the file is missing or not a JSON list, or a record breaks a rule.
    """
    path = source / f"{split}.json"
    for index, value in read_list(path):
        yield _READERS[split](_Record(path, index, value))


def read_benchmark(source: Path) -> list[BenchmarkPrompt]:
    """Read the lists of styles in `benchmark/`, in the order of their names; repeated prompts (`normal_form`) are dropped.

    HPDv2 also has DrawBench's list there, but scores it separately, so it is not a style of the benchmark.

    Raises:
        DataError: there is no list, or an entry is not a text or is empty.
    """
    directory = source / "benchmark"
    paths = sorted(path for path in directory.glob("*.json") if path.stem != DRAWBENCH)
    if not paths:
        raise DataError(f"{directory} contains no list of prompts: put HPDv2's benchmark/*.json there")
    prompts: dict[str, BenchmarkPrompt] = {}
    for path in paths:
        for index, value in read_list(path):
            prompt = _Record(path, index, {"prompt": value}).prompt()
            prompts.setdefault(normal_form(prompt), BenchmarkPrompt(str(path), index, prompt, path.stem))
    return list(prompts.values())


def require_disjoint(train: Mapping[str, Place], benchmark: list[BenchmarkPrompt]) -> None:
    """Refuse a prompt that is both in train.json and in a benchmark list, apart from case, blanks and composition.

    train: prompt to the place of its first record.
    """
    known: dict[str, str] = {}
    for trained in train:
        known.setdefault(normal_form(trained), trained)
    for entry in benchmark:
        prompt = known.get(normal_form(entry.prompt))
        if prompt is not None:
            spelled = "" if prompt == entry.prompt else f" as {prompt!r}"
            file, record = train[prompt]
            raise DataError(
                f"{entry.file}: record {entry.record}: prompt {entry.prompt!r} is also in "
                f"{file}{spelled} (record {record}): train and benchmark must be "
                "disjoint, so remove one of the two"
            )


def read_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (index, value) of a JSON list, parsed one value at a time.

    Raises:
        DataError: the file is missing, not UTF-8 or not a list, with line and column of a syntax error.
    """
    text, decoder = _read_text(path), json.JSONDecoder()
    at = _after_blank(text, 0)
    if text[at : at + 1] != "[":
        raise DataError(f"{path}: must contain a JSON list, but begins with {text[at : at + 20]!r}")
    at = _after_blank(text, at + 1)
    index = 0
    while text[at : at + 1] != "]" or index:
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _syntax_error(path, index, error) from None
        yield index, value
        index += 1
        at = _after_blank(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise _syntax_error(path, index - 1, json.JSONDecodeError("Expecting ',' or ']'", text, at))
        at = _after_blank(text, at + 1)
    if rest := text[at + 1 :].strip():
        raise DataError(f"{path}: nothing may follow the JSON list, found {rest[:20]!r}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: ingest.source must name a directory in HPDv2's layout "
            "(train.json, test.json, benchmark/*.json and the images)"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None


def _after_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def _syntax_error(path: Path, index: int, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path}: record {index}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    )


class _Record:
    """One JSON object with its file and index; each method checks what it returns."""

    def __init__(self, file: Path, index: int, value: Any) -> None:
        self.file, self.index = file, index
        if not isinstance(value, dict):
            self.refuse(f"must be an object, not {type(value).__name__}")
        self._value: Mapping[str, Any] = value

    def refuse(self, rule: str) -> NoReturn:
        """Raise a `DataError` for this record."""
        raise DataError(f"{self.file}: record {self.index}: {rule}")

    def has(self, key: str) -> bool:
        """Whether the record has the key."""
        return key in self._value

    def prompt(self) -> str:
        """Read the prompt: a text that is not blank."""
        return self._text(self._get("prompt"), "prompt")

    def image_names(self, key: str) -> tuple[str, ...]:
        """Read names of images, all different, relative to the directory of the split."""
        names = tuple(self._image_name(name, key) for name in self._list(key))
        if len(set(names)) != len(names):
            self.refuse(f"{key}: the images must differ from each other, found {list(names)}")
        return names

    def _image_name(self, value: Any, key: str) -> str:
        """Read one name; `./` and the directory of the split, which is named like the file, may precede it."""
        try:
            return plain_name(self._text(value, key), self.file.stem)
        except ValueError as error:
            self.refuse(f"{key}: {error}")

    def numbers(self, key: str) -> tuple[float, ...]:
        """Read a list of finite numbers."""
        values = self._list(key)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                self.refuse(f"{key}: must contain numbers, found {value!r}")
        return tuple(values)

    def nested(self, key: str) -> Iterator["_Record"]:
        """Yield the objects of a list as records with the same file and index."""
        for value in self._list(key):
            yield _Record(self.file, self.index, value)

    def _get(self, key: str) -> Any:
        if key not in self._value:
            self.refuse(f"key {key!r} is missing, found {', '.join(sorted(self._value)) or 'no key'}")
        return self._value[key]

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list):
            self.refuse(f"{key}: must be a list, not {type(value).__name__}")
        return value

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            self.refuse(f"{key}: must be a text, not {type(value).__name__}")
        if not value.strip():
            self.refuse(f"{key}: is empty")
        # half of a surrogate pair is valid JSON, but cannot be written to a file
        if _SURROGATE.search(value):
            self.refuse(f"{key}: contains half of a surrogate pair: {value!r}")
        return value


def _train_choice(record: _Record) -> Choice:
    prompt, images = record.prompt(), record.image_names("file_path")
    preference = record.numbers("human_preference")
    if len(images) != _PAIR:
        record.refuse(f"file_path: exactly two images are required, found {len(images)}")
    if sorted(preference) != [0, 1]:
        record.refuse(f"human_preference: must be [1, 0] or [0, 1], found {list(preference)}")
    return Choice(str(record.file), record.index, prompt, images, tuple(1 - chosen for chosen in preference))


def _test_choice(record: _Record) -> Choice:
    prompt, images = record.prompt(), record.image_names("image_path")
    ranks = record.numbers("rank")
    if len(images) < _PAIR:
        record.refuse(f"image_path: at least two images are required, found {len(images)}")
    # HPDv2 spells this key with s; it is not used, but its lengths must match
    annotations = list(record.nested("raw_annotations")) if record.has("raw_annotations") else []
    for name, given in [("rank", ranks), *(("raw_annotations", row.numbers("rank")) for row in annotations)]:
        if len(given) != len(images):
            record.refuse(f"{name}: {len(given)} ranks for {len(images)} images in image_path")
    return Choice(str(record.file), record.index, prompt, images, ranks)


_READERS: Final[Mapping[str, Callable[[_Record], Choice]]] = MappingProxyType(
    {"train": _train_choice, "test": _test_choice}
)
