"""One answer of one rater, as it is collected, stored and analysed."""

from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["paired", "levels"]
Kind = Literal["plain", "repeat", "check"]

PAIRED: Final = "paired"
LEVELS: Final = "levels"
PROTOCOLS: Final = (PAIRED, LEVELS)
PLAIN: Final = "plain"
REPEAT: Final = "repeat"
CHECK: Final = "check"
KINDS: Final = (PLAIN, REPEAT, CHECK)
OVERALL: Final = "overall"
DIMENSIONS: Final = ("text_alignment", "realism", "aesthetics", OVERALL)
PAIRED_ANSWERS: Final = ("first", "second", "tie", "both_bad")
# the levels of the SRPO paper, best first
LEVEL_ANSWERS: Final = ("excellent", "good", "pass", "fail")


@dataclass(frozen=True)
class Rating:
    """One answer. The fields are also the columns of `data/ratings/<task>.parquet`, in this order.

    An answer that the rater took back is no `Rating`.

    task: digest of the planned part of the task; protocol: one of `PROTOCOLS`.
    rater: pseudonym; item: of the task; kind: one of `KINDS`: "repeat" shows the images of an earlier item again, "check"
    has an obvious right answer.
    prompt, style: of the test prompts; sample: number of the image among those of its prompt.
    first, second: the models of a pair, by name ("base", "tiny/v3"); with levels, the image's model and "".
    dimension: "overall" of a pair; one of `DIMENSIONS` with levels.
    answer: one of `PAIRED_ANSWERS`, where "first" and "second" are models and not sides, or one of `LEVEL_ANSWERS`.
    first_on_left: whether the image of `first` was on the left; True with levels.
    repeats: the item whose images a repeat shows again, or "".
    expected: the right answer of a check (with levels "fail", on the dimension that it tests), or "".
    seconds: from showing to answering, without those in which the page was hidden; page: digest of the page's HTML; answered_at: ISO 8601, UTC.
    """

    task: str
    protocol: str
    rater: str
    item: str
    kind: str
    prompt: str
    style: str
    sample: int
    first: str
    second: str
    dimension: str
    answer: str
    first_on_left: bool
    repeats: str
    expected: str
    seconds: float
    page: str
    answered_at: str


def answers_of(protocol: str) -> tuple[str, ...]:
    """Return the possible answers of a protocol."""
    return PAIRED_ANSWERS if protocol == PAIRED else LEVEL_ANSWERS


def dimensions_of(protocol: str) -> tuple[str, ...]:
    """Return the dimensions that each item of a protocol is rated on."""
    return (OVERALL,) if protocol == PAIRED else DIMENSIONS
