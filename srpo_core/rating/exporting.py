"""A task as one HTML file, and the answers that come back from it.

The order of the items and the sides are drawn in the page by (seed, rater, item), as on the server. Of a pair the file has the
images "a" and "b"; which model is which is known to task.json alone. Answers come from a rater, so every value is checked.
"""

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srpo_core.errors import AnswerError, DataError
from srpo_core.rating.answers import (
    BAD_VALUE,
    DOUBLED_ANSWER,
    IMPOSSIBLE_TIME,
    LONGEST,
    UNKNOWN_ITEM,
    Refused,
    is_future,
)
from srpo_core.rating.collected import Answer
from srpo_core.rating.finishing import answers_of_task
from srpo_core.rating.page import render
from srpo_core.rating.presentation import a_is_left
from srpo_core.rating.records import dimensions_of
from srpo_core.rating.server import PSEUDONYM, Pseudonym, Seconds, require_answers, slots
from srpo_core.rating.task import Task, find_task

MOST_BYTES: Final = 50_000_000
MOST_FAULTS: Final = 20  # that are printed
REFUSED: Final = "refused"  # directory below that of a task
_OUT_OF_RANGE: Final = ("greater_than_equal", "less_than_equal")


class ExportedAnswer(BaseModel):
    """One item of a file of answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: str
    answers: dict[str, str]
    seconds: Seconds
    answered_at: str


class ExportedAnswers(BaseModel):
    """A file of answers; each of them is checked on its own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    task: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    protocol: Literal["paired", "levels"]
    rater: Pseudonym
    page: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    answers: list[Any]


class Imported(BaseModel):
    """What became of a file: the number of new items, of those that were stored already, and one line for each fault.

    set_aside: the file with this rater's answers that broke a rule; None if none did.
    """

    task: str
    rater: str
    new: int
    stored_already: int
    faults: list[str]
    set_aside: Path | None = None


def export_page(task: Task) -> str:
    """Return the task as one HTML document, images included."""
    items = [
        {
            "item": item.id,
            "prompt": item.prompt,
            "phase": item.phase,
            "images": [_data_url(task.image(name)) for name in slots(item)],
        }
        for item in task.items.values()
    ]
    content = {"mode": "exported", "task": task.id, "seed": task.planned.seed, "items": items}
    return render(task.protocol, dimensions_of(task.protocol), content)


def import_answers(path: Path) -> Imported:
    """Store the answers of a file that an exported page has saved. What is stored already is counted, so it may be repeated.

    Raises:
        DataError: the file is no file of answers, its task is unknown or finished.
    """
    content = _read(path)
    task = find_task(content.task)
    if content.protocol != task.protocol:
        raise DataError(
            f"{path}: protocol is {content.protocol}, and that of task {task.id} is {task.protocol}"
        )
    store = answers_of_task(task)
    new, faults, refused = 0, [], Refused()
    seen: set[str] = set()
    for number, one in enumerate(content.answers, 1):
        try:
            new += store.add(_answer(task, content, one, seen))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            faults.append(f"{path}: answer {number}: {place}: {first['msg']}")
            rule = IMPOSSIBLE_TIME if place == "seconds" and first["type"] in _OUT_OF_RANGE else BAD_VALUE
            refused.add(path.name, number, rule, f"{place}: {first['msg']}", {"answer": one})
        except AnswerError as error:
            faults.append(f"{path}: answer {number}: {error}")
            if store.closed() is None:  # a finished task takes no answers, good or bad
                refused.add(path.name, number, _rule(task, one, seen), str(error), one)
    return Imported(
        task=task.id,
        rater=content.rater,
        new=new,
        stored_already=len(content.answers) - new - len(faults),
        faults=faults,
        set_aside=_set_aside(task, content.rater, refused),
    )


def refused_path(directory: Path, rater: str) -> Path:
    """Return the file of a rater's answers that were refused, below the directory of a task."""
    return directory / REFUSED / f"{rater}.jsonl"


def forget_refused(directory: Path, rater: str) -> None:
    """Delete a rater's refused answers of a task."""
    if re.fullmatch(PSEUDONYM, rater):  # other names have none, and may not be a path
        refused_path(directory, rater).unlink(missing_ok=True)


def _set_aside(task: Task, rater: str, refused: Refused) -> Path | None:
    """Add refused answers to the rater's file; each is there once, however often a file is imported."""
    if not refused.entries:
        return None
    path = refused_path(task.directory, rater)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    entries = [*known, *(one for one in refused.entries if one not in known)]
    Refused(entries=entries).write(path)
    return path


def _rule(task: Task, one: Mapping[str, Any], seen: set[str]) -> str:
    """Return the rule that a well-formed answer breaks."""
    item = one["item"]
    if item not in task.items:
        return UNKNOWN_ITEM
    if item in seen:
        return DOUBLED_ANSWER  # in the file, or stored otherwise
    try:
        is_late = is_future(_time(one["answered_at"]))
    except AnswerError:
        return BAD_VALUE
    return IMPOSSIBLE_TIME if is_late else BAD_VALUE


def _read(path: Path) -> ExportedAnswers:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES} bytes: it is no file of answers")
        return ExportedAnswers.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path} is no file of answers ({place}: {first['msg']}): give the file that 'Download answers' saved"
        ) from None


def _answer(task: Task, content: ExportedAnswers, one: Any, seen: set[str]) -> Answer:
    """Return an answer of a file if it breaks no rule, and add its item to those that the file has answered."""
    checked = ExportedAnswer.model_validate(one)
    if checked.item in seen:
        raise AnswerError(f"item {checked.item} is answered twice in this file; the first answer counts")
    require_answers(task, checked.item, checked.answers)
    at = _time(checked.answered_at)
    if is_future(at):
        raise AnswerError(
            f"answered_at is {checked.answered_at}, which is in the future: correct the time in the file"
        )
    seen.add(checked.item)
    left = a_is_left(task.planned.seed, content.rater, checked.item)
    seconds = min(checked.seconds, LONGEST)
    return Answer(content.rater, checked.item, checked.answers, left, seconds, content.page, at)


def _time(text: str) -> str:
    """Return a time as the server writes it. The page's is that of JavaScript's `toISOString`."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", text, re.ASCII):
            return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        pass
    raise AnswerError(f"answered_at is {text[:40]!r}: it must be a time such as 2026-01-31T12:00:00Z")


def _data_url(image: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(image).decode()}"
