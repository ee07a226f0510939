"""Checks of one record of any format: its keys, texts, numbers and names of images."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from srpo_core.data.image_names import plain_name
from srpo_core.data.json_lists import Unreadable
from srpo_core.data.rules import LONGEST_PROMPT, Findings, Problem
from srpo_core.prompts import is_visible

_ASCII_SIGN: Final = re.compile(r"[!-~]")
SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SIMPLE_NAME: Final = re.compile(r"[\w-][\w.-]*", re.ASCII)
_LONGEST_PART: Final = 255  # bytes of a file's name on usual file systems
_LARGEST: Final = 2**53  # beyond it, not every integer is a float
_SHOWN: Final = 200


class LeftOut(Exception):  # noqa: N818  # no error: the problem is reported already
    """The record was reported to `Findings`, and is left out."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record with its place, and its text if it was JSON; each method checks what it returns.

    A method raises `LeftOut` if the record breaks a rule and must be left out, and `DataError` if that ends the run.
    """

    findings: Findings
    file: str
    index: int
    value: Any
    text: str = ""

    def mapping(self) -> Mapping[str, Any]:
        """Return the record's keys and values."""
        if isinstance(self.value, Unreadable):
            self.refuse(self.value.rule, self.value.detail)
        if not isinstance(self.value, Mapping):
            self.refuse("broken_record", f"must be an object, not {type(self.value).__name__}")
        return self.value

    def note(self, rule: str, detail: str) -> None:
        """Report that the record breaks a rule; go on if it may be kept."""
        text = self.text
        if not text and not isinstance(self.value, Unreadable):
            text = json.dumps(self.value, default=str)
        if self.findings.report(Problem(self.file, self.index, rule, detail, text)):
            raise LeftOut

    def refuse(self, rule: str, detail: str) -> NoReturn:
        """Report that the record breaks a rule without which it cannot be used."""
        self.note(rule, detail)
        raise LeftOut

    def has(self, key: str) -> bool:
        """Whether the record has the key."""
        return key in self.mapping()

    def prompt(self, key: str = "prompt") -> str:
        """Read the prompt: a text with a visible character, of at most `LONGEST_PROMPT` characters."""
        return self.check_prompt(self._get(key), key)

    def check_prompt(self, value: Any, key: str) -> str:
        """Return a text with a visible character, of at most `LONGEST_PROMPT` characters."""
        prompt = self.check_text(value, key)
        if len(prompt) > LONGEST_PROMPT:
            self.refuse(
                "long_prompt", f"{key}: has {len(prompt)} characters, at most {LONGEST_PROMPT} are allowed"
            )
        return prompt

    def image_names(self, key: str, folder: str) -> tuple[str, ...]:
        """Read names of images, all different, relative to the directory `folder` of the split."""
        names = tuple(self.check_image_name(name, key, folder) for name in self._list(key))
        if len(set(names)) != len(names):
            self.refuse("image_name", f"{key}: the images must differ from each other, found {brief(names)}")
        return names

    def check_image_name(self, value: Any, key: str, folder: str) -> str:
        """Return the plain form of an image's name (`plain_name`); a part has at most 255 bytes."""
        if isinstance(value, str) and len(value) <= _LONGEST_PART and _SIMPLE_NAME.fullmatch(value):
            return value
        try:
            name = plain_name(self.check_text(value, key), folder)
        except ValueError as error:
            self.refuse("image_name", f"{key}: {error}")
        if any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
            self.refuse("image_name", f"{key}: {brief(value)} has a part of more than {_LONGEST_PART} bytes")
        return name

    def numbers(self, key: str) -> tuple[float, ...]:
        """Read a list of finite numbers of at most 2^53."""
        values = self._list(key)
        for value in values:
            if type(value) is int and -_LARGEST <= value <= _LARGEST:
                continue  # the usual case, without the checks below
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.refuse("broken_record", f"{key}: must contain numbers, found {brief(value)}")
            self.check_number(value, key)
        return tuple(values)

    def check_number(self, value: float, key: str) -> float:
        """Return a finite number of at most 2^53."""
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse("bad_number", f"{key}: must contain numbers, found {value!r}")
        if abs(value) > _LARGEST:
            self.refuse("bad_number", f"{key}: numbers must be at most 2^53, found a larger one")
        return value

    def nested(self, key: str) -> Iterator["Record"]:
        """Yield the objects of a list as records with the same place."""
        for value in self._list(key):
            yield Record(self.findings, self.file, self.index, value, self.text)

    def check_text(self, value: Any, key: str) -> str:
        """Return a text that has a visible character and can be written to a file."""
        if not isinstance(value, str):
            self.refuse("broken_record", f"{key}: must be a text, not {type(value).__name__}")
        if value.isprintable() and _ASCII_SIGN.search(value):
            return value  # the usual case, without the checks below
        if not value.strip():
            self.refuse("empty_text", f"{key}: is empty")
        if SURROGATE.search(value):
            self.refuse("half_surrogate", f"{key}: contains half of a surrogate pair: {brief(value)}")
        if not is_visible(value):
            self.refuse("empty_text", f"{key}: has only invisible characters: {brief(value)}")
        if found := _CONTROL.search(value):
            self.note("control_character", f"{key}: contains the control character {found[0]!r}")
        return value

    def _get(self, key: str) -> Any:
        value = self.mapping()
        if key not in value:
            found = ", ".join(sorted(map(str, value))) or "no key"
            self.refuse("broken_record", f"key {key!r} is missing, found {found}")
        return value[key]

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list):
            self.refuse("broken_record", f"{key}: must be a list, not {type(value).__name__}")
        return value


def brief(value: Any) -> str:
    """Return `repr` of a value from a file, cut; an integer may have too many digits for it."""
    if isinstance(value, tuple):
        value = list(value)
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
