"""What a data set is made of: ranked images of a prompt, and prompts to evaluate with."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final

SPLITS: Final = ("train", "test")
# the file as text, and the number of the record in it, from 0
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """One record: images of one prompt, ranked. The lower rank is preferred; equal ranks are a tie.

    file, record: its place, for messages. annotations: the ranks that each person gave, if the data set has them.
    """

    file: str
    record: int
    prompt: str
    images: tuple[str, ...]
    ranks: tuple[float, ...]
    annotations: tuple[tuple[float, ...], ...] = ()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (preferred, rejected) for every two images of different rank, best first."""
        ranked = sorted(zip(self.ranks, self.images, strict=True), key=lambda entry: entry[0])
        for (better, preferred), (worse, rejected) in combinations(ranked, 2):
            if better < worse:
                yield preferred, rejected


@dataclass(frozen=True, slots=True)
class BenchmarkPrompt:
    """One prompt to evaluate with, and its style: in HPDv2 the stem of the list's name."""

    file: str
    record: int
    prompt: str
    style: str
