"""Choose the control word of a step, and count the training prompts that contain it."""

import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate

from srpo_core.randomness import keyed_share

SEPARATOR = r"[\s-]+"


def word_in_turn(weights: Mapping[str, float], step: int) -> str:
    """Return the word at `step`, counted from 0, of a fixed sequence in which words occur in proportion to weight.

    Each step takes the word that is furthest behind its share; words of equal weight alternate in their order.
    """
    total, counts = sum(weights.values()), dict.fromkeys(weights, 0)
    for place in range(1, step + 2):
        # rounded, so that ties do not depend on the order of the additions
        word = max(weights, key=lambda word: round(weights[word] / total * place - counts[word], 9))
        counts[word] += 1
    return word


def word_by_weight(weights: Mapping[str, float], seed: int, *key: int | str) -> str:
    """Draw a word with probability proportional to its weight, the same for the same (seed, *key)."""
    upper = list(accumulate(weights.values()))
    place = bisect(upper, keyed_share(seed, *key) * upper[-1])
    return list(weights)[min(place, len(upper) - 1)]


def count_prompts(word: str, prompts: Sequence[str]) -> int:
    """Count the prompts that contain a word or phrase as whole words, ignoring case.

    Spaces and hyphens are equal: "natural lighting" contains "Natural-lighting".
    """
    parts = SEPARATOR.join(re.escape(part) for part in re.split(SEPARATOR, word))
    whole = re.compile(rf"(?<!\w){parts}(?!\w)", re.IGNORECASE)
    return sum(whole.search(prompt) is not None for prompt in prompts)
