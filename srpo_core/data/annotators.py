"""How far people agree on a data set: annotators with the final order of the images, and with each other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from srpo_core.data.choices import Choice
from srpo_core.data.intervals import share_interval
from srpo_core.prompts import normal_form

Ranks = Sequence[float]


@dataclass(frozen=True)
class Share:
    """A share of `count` comparisons of two images, with its 95 % interval over prompts."""

    share: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class AnnotatorAgreement:
    """How far annotators agree.

    records: records with annotations; annotations: their number. with_rank: how often an annotator who does not call
    two images equal prefers the one of the lower final rank. between: how often two annotators of a record prefer the
    same image. Two images of equal rank are left out. None if there is nothing to compare. An annotator
    has a part in the final rank, so `with_rank` is the more favourable figure.
    """

    records: int
    annotations: int
    with_rank: Share | None
    between: Share | None


def annotator_agreement(choices: Iterable[Choice]) -> AnnotatorAgreement:
    """Compare the annotations of records with the records' ranks, and with each other."""
    records = annotations = 0
    with_rank: list[tuple[str, bool]] = []
    between: list[tuple[str, bool]] = []
    for choice in choices:
        if not choice.annotations:
            continue
        records += 1
        annotations += len(choice.annotations)
        prompt = normal_form(choice.prompt)
        for own in choice.annotations:
            with_rank += [(prompt, same) for same in _same_order(own, choice.ranks)]
        for one, other in combinations(choice.annotations, 2):
            between += [(prompt, same) for same in _same_order(one, other)]
    return AnnotatorAgreement(records, annotations, _share(with_rank), _share(between))


def _same_order(one: Ranks, other: Ranks) -> Iterator[bool]:
    """Yield for each two images that both rank differently whether both prefer the same one."""
    for first, second in combinations(range(len(one)), 2):
        if one[first] != one[second] and other[first] != other[second]:
            yield (one[first] < one[second]) == (other[first] < other[second])


def _share(compared: Sequence[tuple[str, bool]]) -> Share | None:
    """Compute the share of comparisons, each with its prompt, that are True."""
    if not compared:
        return None
    agreed = [same for _, same in compared]
    return Share(
        sum(agreed) / len(agreed), *share_interval(agreed, [prompt for prompt, _ in compared]), len(agreed)
    )
