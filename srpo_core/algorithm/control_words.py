"""Which control word a step uses, and whether the training prompts show it at all."""

import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate

from srpo_core.randomness import keyed_share

SEPARATOR = r"[\s-]+"


def word_in_turn(weights: Mapping[str, float], step: int) -> str:
    """The word at `step` (from 0) of a fixed sequence in which each word's share is its weight's.

    Always the word that is furthest behind its share; words of equal weight come round in their order.
    """
    total, counts = sum(weights.values()), dict.fromkeys(weights, 0)
    for place in range(1, step + 2):
        # rounded: a tie must be one whatever the order of the additions was
        word = max(weights, key=lambda word: round(weights[word] / total * place - counts[word], 9))
        counts[word] += 1
    return word


def word_by_weight(weights: Mapping[str, float], seed: int, *key: int | str) -> str:
    """A word drawn with a probability proportional to its weight, the same for the same (seed, *key)."""
    upper = list(accumulate(weights.values()))
    place = bisect(upper, keyed_share(seed, *key) * upper[-1])
    return list(weights)[min(place, len(upper) - 1)]


def count_prompts(word: str, prompts: Sequence[str]) -> int:
    """The number of prompts in which a word, or several, stand whole, in any case.

    Space and hyphen are one: "Natural-lighting" is found in "natural lighting".
    """
    parts = SEPARATOR.join(re.escape(part) for part in re.split(SEPARATOR, word))
    whole = re.compile(rf"(?<!\w){parts}(?!\w)", re.IGNORECASE)
    return sum(whole.search(prompt) is not None for prompt in prompts)
