"""Answers that break a rule are set aside and counted: bad values, unknown items, doubled answers, impossible times."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import replacing
from srpo_core.data.rules import SHOWN_TEXT, one_line
from srpo_core.rating.records import (
    CHECK,
    KINDS,
    PAIRED,
    PROTOCOLS,
    REPEAT,
    Rating,
    answers_of,
    dimensions_of,
)

BAD_VALUE: Final = "bad_value"
UNKNOWN_ITEM: Final = "unknown_item"
DOUBLED_ANSWER: Final = "doubled_answer"
IMPOSSIBLE_TIME: Final = "impossible_time"
RULES: Final = (BAD_VALUE, UNKNOWN_ITEM, DOUBLED_ANSWER, IMPOSSIBLE_TIME)

SHORTEST: Final = 0.1  # seconds; nobody sees two images and answers in less
LONGEST: Final = 86_400.0  # seconds
MOST_CHARACTERS: Final = 64  # of a pseudonym, an item or a task
_MAY_BE_EMPTY: Final = frozenset({"style", "second", "repeats", "expected"})
_TYPES: Final[dict[str, Any]] = {item.name: item.type for item in fields(Rating)}


@dataclass
class Refused:
    """What was set aside.

    counts: by rule. entries: for the quarantine, in the order of the answers.
    """

    counts: Counter[str] = field(default_factory=Counter)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, source: str, record: int, rule: str, detail: str, row: Mapping[str, Any]) -> None:
        """Set an answer aside."""
        self.counts[rule] += 1
        text = json.dumps(row, sort_keys=True, default=str)[:SHOWN_TEXT]
        self.entries.append(
            {"file": source, "record": record, "rule": rule, "detail": one_line(detail), "text": text}
        )

    def summary(self) -> str:
        """Return the counts as a line: `2 answers set aside: bad_value 1, doubled_answer 1 (first: …)`; empty without one."""
        if not self.entries:
            return ""
        counts = ", ".join(f"{rule} {self.counts[rule]}" for rule in RULES if self.counts[rule])
        first = self.entries[0]
        number = len(self.entries)
        return (
            f"{number} answer{'s' if number > 1 else ''} set aside: {counts} "
            f"(first: {first['file']}, record {first['record']}: {first['detail']})"
        )

    def write(self, path: Path) -> None:
        """Write the quarantine, a line of JSON for each answer that was set aside."""
        with replacing(path) as partial, partial.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(entry, sort_keys=True) + "\n" for entry in self.entries)


def checked(
    rows: Iterable[Mapping[str, Any]],
    source: str,
    refused: Refused,
    *,
    items: Collection[str] | None = None,
    known: Iterable[Rating] = (),
    now: datetime | None = None,
) -> list[Rating]:
    """Return the valid answers of `rows`, which may come from anywhere, and set the others aside in `refused`.

    source: name of the file, for messages. items: those of the task, if it is known. known: answers that are there already; one of
    the same rater, item and dimension is a doubled one, whatever it says. now: answers after it have an impossible time.
    """
    now = now or datetime.now(UTC)
    seen = {_key(rating): rating.answer for rating in known}
    found = []
    for record, row in enumerate(rows):
        wrong = _bad_value(row)
        if wrong:
            refused.add(source, record, BAD_VALUE, wrong, row)
            continue
        rating = Rating(**{name: row[name] for name in _TYPES})
        rule, detail = _broken(rating, items, seen, now)
        if rule:
            refused.add(source, record, rule, detail, row)
            continue
        seen[_key(rating)] = rating.answer
        found.append(rating)
    return found


def _broken(
    rating: Rating, items: Collection[str] | None, seen: Mapping[tuple[str, ...], str], now: datetime
) -> tuple[str, str]:
    """Return the rule that a well-formed answer breaks, and how; two empty texts if it breaks none."""
    if items is not None and rating.item not in items:
        return UNKNOWN_ITEM, f"item {rating.item!r} is not in task {rating.task}"
    if not SHORTEST <= rating.seconds <= LONGEST or is_future(rating.answered_at, now):
        return IMPOSSIBLE_TIME, f"answered in {rating.seconds:g} s at {rating.answered_at}"
    before = seen.get(_key(rating))
    if before is not None:
        same = "the same" if before == rating.answer else f"first {before!r}, then {rating.answer!r}"
        return (
            DOUBLED_ANSWER,
            f"{rating.rater!r} answered item {rating.item!r} ({rating.dimension}) before: {same}",
        )
    return "", ""


def is_future(answered_at: str, now: datetime | None = None) -> bool:
    """Whether a time, ISO 8601 with a zone, is later than `now` by more than a day: clocks of raters may differ by less."""
    return datetime.fromisoformat(answered_at) > (now or datetime.now(UTC)) + timedelta(days=1)


def _bad_value(row: Mapping[str, Any]) -> str:
    """Say what is wrong with the values of an answer, as one line; empty if nothing is."""
    if not isinstance(row, Mapping) or set(row) != set(_TYPES):
        have = set(row) if isinstance(row, Mapping) else set()
        names = sorted(map(str, have ^ set(_TYPES)))
        return f"an answer has the fields of Rating and no others; missing or additional: {', '.join(names)}"
    for name, kind in _TYPES.items():
        wrong = _wrong_type(name, row[name], kind)
        if wrong:
            return wrong
    return _wrong_choice(row) or _wrong_reference(row)


def _wrong_type(name: str, value: Any, kind: Any) -> str:
    accepted: tuple[Any, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return f"{name} is {value!r}, not of type {kind.__name__}"
    if kind is float and not math.isfinite(value):
        return f"{name} is {value!r}, not a finite number"
    if kind is str and not value and name not in _MAY_BE_EMPTY:
        return f"{name} is empty"
    if name in ("task", "rater", "item") and not (value.isprintable() and len(value) <= MOST_CHARACTERS):
        return f"{name} is {value!r}: at most {MOST_CHARACTERS} printable characters are allowed"
    if name == "sample" and value < 0:
        return f"sample is {value}, and must be 0 or more"
    return ""


def _wrong_choice(row: Mapping[str, Any]) -> str:
    choices: dict[str, Collection[str]] = {"protocol": PROTOCOLS, "kind": KINDS}
    if row["protocol"] in PROTOCOLS:
        choices["dimension"] = dimensions_of(row["protocol"])
        choices["answer"] = answers_of(row["protocol"])
        choices["expected"] = ("", *answers_of(row["protocol"]))
    for name, allowed in choices.items():
        if row[name] not in allowed:
            return f"{name} is {row[name]!r}, not one of {', '.join(filter(None, allowed))}"
    return ""


def _wrong_reference(row: Mapping[str, Any]) -> str:
    """Compare the fields of an answer with each other."""
    try:
        if datetime.fromisoformat(row["answered_at"]).tzinfo is None:
            return f"answered_at is {row['answered_at']!r}, without a time zone"
    except ValueError:
        return f"answered_at is {row['answered_at']!r}, not a time in ISO 8601"
    if (row["protocol"] == PAIRED) != bool(row["second"]):
        return f"second is {row['second']!r} with protocol {row['protocol']}"
    if row["first"] == row["second"] and row["kind"] != CHECK:
        return f"first and second are the same model, {row['first']!r}"
    if row["kind"] == REPEAT and not row["repeats"]:
        return "an item of kind repeat names none in repeats"
    return ""


def _key(rating: Rating) -> tuple[str, ...]:
    return rating.task, rating.rater, rating.item, rating.dimension


def as_row(rating: Rating) -> dict[str, Any]:
    """Return an answer as a dictionary, with its columns in order."""
    return asdict(rating)
