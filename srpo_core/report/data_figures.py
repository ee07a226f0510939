"""The figures of a data set as rows: of its page, and of the comparison of two versions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srpo_core.algorithm.control_words import count_prompts
from srpo_core.config import ControlWords
from srpo_core.data.statistics import Statistics, lengths
from srpo_core.report.numbers import percent

Findings = Mapping[str, Mapping[str, Any]] | None
WITH_RANK, BETWEEN = "with the final rank", "between two annotators"


@dataclass(frozen=True)
class Figure:
    """One figure. is_share: it is a share in [0, 1], shown as a percentage."""

    group: str
    name: str
    value: float
    is_share: bool = False

    @property
    def text(self) -> str:
        """The value as text."""
        if self.is_share:
            return percent(self.value, 1)
        return f"{self.value:,.1f}".removesuffix(".0")


def figures(statistics: Statistics, words: ControlWords, findings: Findings) -> list[Figure]:
    """List all figures of a data set, in the order of the page."""
    return [
        *_counts(statistics),
        *(Figure("styles", style, count) for style, count in statistics.styles().items()),
        *(
            Figure(f"styles of {split}", style, count)
            for split, one in statistics.splits.items()
            for style, count in one.styles.items()
            if len(one.styles) > 1
        ),
        *_lengths(statistics),
        *_annotators(statistics),
        *_words(statistics, words),
        *(
            Figure("findings", f"{rule}: {key.replace('_', ' ')}", one[key])
            for rule, one in (findings or {}).items()
            for key in ("found", "set_aside")
        ),
    ]


def moved(old: Sequence[Figure], new: Sequence[Figure]) -> list[tuple[Figure | None, Figure | None]]:
    """Return the figures that differ as (old, new); None where a version lacks one, which counts as 0."""
    before = {(one.group, one.name): one for one in old}
    after = {(one.group, one.name): one for one in new}
    keys = list(dict.fromkeys([*before, *after]))
    both = [(before.get(key), after.get(key)) for key in keys]
    return [(one, other) for one, other in both if (one.value if one else 0) != (other.value if other else 0)]


def coverage(statistics: Statistics, words: ControlWords) -> list[dict[str, Any]]:
    """Count the prompts that contain each word of the library, by split: rows for the page."""
    prompts = statistics.prompts()
    used = dict.fromkeys(words.wanted, "wanted") | dict.fromkeys(words.unwanted, "unwanted")
    library = {word: "" for pair in words.library.values() for word in (*pair.wanted, *pair.unwanted)}
    return [
        {
            "word": word,
            "use": use,
            "counts": {split: (count_prompts(word, texts), len(texts)) for split, texts in prompts.items()},
        }
        for word, use in (library | used).items()
    ]


def _counts(statistics: Statistics) -> Iterator[Figure]:
    for split, one in statistics.splits.items():
        for name in ("records", "pairs", "ties", "images"):
            yield Figure(name, split, getattr(one, name))
        yield Figure("prompts", split, len(one.prompts))
    yield Figure("prompts", "benchmark", len(statistics.benchmark))


def _lengths(statistics: Statistics) -> Iterator[Figure]:
    for split, prompts in statistics.prompts().items():
        for name, value in lengths(prompts).items():
            yield Figure(f"characters of a prompt of {split}", name, value)


def _annotators(statistics: Statistics) -> Iterator[Figure]:
    own = statistics.annotators
    yield Figure("annotations", "records with annotations", own.records)
    yield Figure("annotations", "annotations", own.annotations)
    for name, share in ((WITH_RANK, own.with_rank), (BETWEEN, own.between)):
        if share is not None:
            yield Figure("agreement of annotators", name, share.share, is_share=True)


def _words(statistics: Statistics, words: ControlWords) -> Iterator[Figure]:
    for row in coverage(statistics, words):
        for split, (count, _) in row["counts"].items():
            yield Figure(f"prompts with “{row['word']}”", split, count)
