"""The styles of prompts: as the data say, or, for prompts without one, assigned by their words."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from srpo_core.config import IngestSettings
from srpo_core.data.choices import SPLITS
from srpo_core.data.drift import exact_bounds
from srpo_core.data.kept import open_kept
from srpo_core.data.statistics import NO_STYLE, styles_by_prompt
from srpo_core.prompts import normal_form

_WORD: Final = re.compile(r"\w+")
_TAIL: Final = 0.025  # of the bound of the accuracy
_PART: Final = (
    3  # letters; parts of words say something of words that no list has, and of texts without blanks
)


@dataclass(frozen=True)
class StyledPrompts:
    """The different prompts of a data set, by `normal_form`, and the style of each that has one.

    prompts: those of the records. styles: of prompts that a list of the benchmark or a column names.
    """

    prompts: frozenset[str]
    styles: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether every prompt has a style."""
        return self.prompts <= self.styles.keys()

    def counts(self) -> dict[str, int]:
        """Count the prompts by style; those without one are `NO_STYLE`."""
        return dict(Counter(self.styles.get(prompt, NO_STYLE) for prompt in self.prompts))


def read_styles(ingest: IngestSettings, findings: Mapping[str, Mapping[str, Any]] | None) -> StyledPrompts:
    """Read the prompts of a data set and their styles. ingest, findings: as for `open_kept`.

    Raises:
        DataError: a file cannot be read, or there is no prompt.
    """
    # a table tells the styles of the records that are held out, so that all of them are
    source = open_kept(ingest.model_copy(update={"test_share": 1.0}), findings)
    prompts = {normal_form(choice.prompt) for split in SPLITS for choice in source.choices(split)}
    named = styles_by_prompt(source.benchmark())
    return StyledPrompts(
        frozenset(prompts or named), {prompt: style for prompt, style in named.items() if style}
    )


class StyleAssignment:
    """Assign styles to prompts by naive Bayes over the parts of their words, learned from prompts with a style.

    Every style is as likely as another before a prompt is read. A prompt of the lists is assigned a style without what it
    has taught, so that known and unknown prompts are assigned alike. A prompt that shares no part of a word with any
    list is `NO_STYLE`. McCallum and Nigam 1998, with Laplace's smoothing.
    """

    def __init__(self, styles: Mapping[str, str]) -> None:
        """styles: of prompts, by `normal_form`; at least two different ones."""
        self._styles = styles
        self._names = sorted(set(styles.values()))
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in self._names}
        for prompt, style in styles.items():
            self._counts[style].update(_parts(prompt))
        self._totals = {name: counts.total() for name, counts in self._counts.items()}
        self._uses = Counter(part for counts in self._counts.values() for part in counts.elements())
        self._size = len(self._uses)

    def style(self, prompt: str) -> str:
        """Return the style of a prompt in its `normal_form`."""
        own, parts = self._styles.get(prompt), Counter(_parts(prompt))
        known = {
            part: count
            for part, count in parts.items()
            if self._uses[part] > (count if own is not None else 0)
        }
        if not known:
            return NO_STYLE
        return max(self._names, key=lambda name: self._evidence(name, known, parts if name == own else None))

    def accuracy(self) -> float:
        """Return the share of the prompts with a style that are assigned it, each without what it has taught."""
        hits = sum(self.style(prompt) == style for prompt, style in self._styles.items())
        return hits / len(self._styles)

    def _evidence(self, name: str, parts: Mapping[str, int], taught: Counter[str] | None) -> float:
        """Return the logarithm of the likelihood of a prompt's parts. taught: what is left out of the style's counts."""
        counts = self._counts[name]
        total = self._totals[name] - (taught.total() if taught else 0) + self._size
        return sum(
            count * math.log((counts[part] - (taught[part] if taught else 0) + 1) / total)
            for part, count in parts.items()
        )


@dataclass(frozen=True)
class ComparedStyles:
    """The prompts of two data sets by style. accuracy: of the assignment; None if the data name every style."""

    before: Mapping[str, int]
    after: Mapping[str, int]
    accuracy: float | None = None


def compare_styles(before: StyledPrompts, after: StyledPrompts) -> ComparedStyles | str:
    """Count the prompts of two data sets by style, in the same way; or return why that is not possible.

    If each prompt of both has a style, these count. Else all prompts of both are assigned one by their words, learned
    from those of either that have one. That must be right more often than to call all of them the most frequent style.
    """
    if before.is_complete and after.is_complete:
        return ComparedStyles(before.counts(), after.counts())
    named = {**before.styles, **after.styles}
    sizes = Counter(named.values())
    if len(sizes) < 2:  # noqa: PLR2004  # with one style, or none, there is nothing to assign
        return f"the data name {len(sizes)} styles, and two are needed to assign styles to the prompts without one"
    assignment = StyleAssignment(named)
    accuracy, most = assignment.accuracy(), max(sizes.values()) / len(named)
    if exact_bounds(accuracy, len(named), _TAIL)[0] <= most:
        return (
            f"styles cannot be assigned by words: of the {len(named)} prompts that have one, {accuracy:.0%} would get it, and "
            f"{most:.0%} have the most frequent one"
        )
    style = {prompt: assignment.style(prompt) for prompt in sorted(before.prompts | after.prompts)}
    old, new = (dict(Counter(style[prompt] for prompt in one.prompts)) for one in (before, after))
    return ComparedStyles(old, new, accuracy)


def _parts(prompt: str) -> Iterator[str]:
    """Yield the words of a prompt, with a blank at both ends, and their parts of three letters."""
    for word in _WORD.findall(prompt):
        whole = f" {word} "
        yield whole
        for start in range(len(whole) - _PART + 1):
            yield whole[start : start + _PART]
