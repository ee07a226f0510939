"""The end of a task: answers become ratings, which name models. Before it, only counts are known."""

from collections.abc import Iterable
from dataclasses import asdict

from srpo_core.errors import DataError
from srpo_core.rating.answers import UNKNOWN_ITEM, Refused, as_row, checked
from srpo_core.rating.collected import FILE, Answer, Answers
from srpo_core.rating.records import LEVELS, Rating
from srpo_core.rating.task import Task


def answers_of_task(task: Task) -> Answers:
    """Return the answers of a task."""
    return Answers(task.directory / FILE)


def complete_raters(task: Task, answers: Answers) -> list[str]:
    """Return the raters who have answered every item."""
    return [rater for rater, count in answers.counts().items() if count == len(task.items)]


def finish(task: Task, answers: Answers, *, early: str = "", refused: Refused | None = None) -> list[Rating]:
    """Close a task at its planned end and return its valid ratings; it takes no more answers. May be repeated.

    early: reason to close it before the planned end, which is stored. refused: where ratings that break a rule are set aside.

    Raises:
        DataError: fewer raters than planned have answered every item, and no reason is given; or there are no valid answers.
    """
    own = Refused() if refused is None else refused
    counts, complete = answers.counts(), complete_raters(task, answers)
    if not counts:
        raise DataError(f"task {task.id} has no answers")
    if answers.closed() is None and len(complete) < task.num_raters and not early:
        raise DataError(
            f"task {task.id}: {len(complete)} of {task.num_raters} planned raters have answered all {len(task.items)} items; "
            "results are shown at the planned end: wait for the others, or close the task for good with --early REASON"
        )
    if not valid_ratings(task, answers.all(), found := Refused()):
        raise DataError(f"task {task.id} has no valid answers: {found.summary()}")
    answers.close(early)
    return valid_ratings(task, answers.all(), own)


def valid_ratings(task: Task, answers: Iterable[Answer], refused: Refused) -> list[Rating]:
    """Translate answers into ratings of models, and set those aside in `refused` that no reader of ratings would take."""
    ratings: list[Rating] = []
    for number, one in enumerate(answers):
        if one.item in task.items:
            ratings += to_ratings(task, [one])
        else:
            refused.add(
                FILE, number, UNKNOWN_ITEM, f"item {one.item!r} is not in task {task.id}", asdict(one)
            )
    return checked(map(as_row, ratings), task.id, refused, items=task.items)


def to_ratings(task: Task, answers: Iterable[Answer]) -> Iterable[Rating]:
    """Translate answers as they were seen into ratings of models, one for each dimension."""
    for one in answers:
        item = task.items[one.item]
        first_on_left = task.protocol == LEVELS or one.a_is_left == item.first_is_a
        named = {
            "left": "first" if first_on_left else "second",
            "right": "second" if first_on_left else "first",
        }
        for dimension, answer in one.answers.items():
            tested = item.expected if dimension == item.dimension else ""
            yield Rating(
                task=task.id,
                protocol=task.protocol,
                rater=one.rater,
                item=item.id,
                kind=item.kind,
                prompt=item.prompt,
                style=item.style,
                sample=item.sample,
                first=item.first,
                second=item.second,
                dimension=dimension,
                answer=named.get(answer, answer),
                first_on_left=first_on_left,
                repeats=item.repeats,
                expected=tested,
                seconds=one.seconds,
                page=one.page,
                answered_at=one.answered_at,
            )
