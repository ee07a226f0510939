"""How well automatic scores predict what people prefer, image pair by image pair."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from srpo_core.artifacts import ALIGNED
from srpo_core.rating.clustered import Estimate, rate_interval
from srpo_core.rating.records import PLAIN, Rating

LEAST_ITEMS: Final = 5  # for a rank correlation
_WON: Final = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}


def predictions(
    ratings: Sequence[Rating], figures: Any, *, other: str, named: str, confidence: float
) -> dict[str, dict[str, float | int | None]]:
    """Compare people with each metric, image pair by image pair, against `other`, which is `named` in the answers.

    agreement: the share of pairs with a preference of most people in which the metric prefers the same image, equal figures count
    half, with an interval over prompts. correlation: Spearman's, of the share of people who prefer
    the model with the difference of the figures; null with fewer than `LEAST_ITEMS` pairs.
    """
    liked = _preferences(ratings, named)
    found: dict[str, dict[str, float | int | None]] = {}
    rows = figures.select(["model", "prompt", "seed", "metric", "value"]).to_pylist()
    values = {(row["metric"], row["model"], row["prompt"], row["seed"]): row["value"] for row in rows}
    for metric in dict.fromkeys(row["metric"] for row in rows):
        pairs = [
            (prompt, share, ours - theirs)
            for (prompt, sample), share in sorted(liked.items())
            if (ours := values.get((metric, ALIGNED, prompt, sample))) is not None
            and (theirs := values.get((metric, other, prompt, sample))) is not None
            and math.isfinite(ours - theirs)
        ]
        if pairs:
            found[metric] = _agreement(pairs, confidence)
    return found


def _preferences(ratings: Sequence[Rating], named: str) -> dict[tuple[str, int], float]:
    """Return the share of people who prefer the model, by prompt and image."""
    votes: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in ratings:
        if one.kind == PLAIN and {one.first, one.second} == {ALIGNED, named}:
            won = _WON[one.answer]
            votes[one.prompt, one.sample].append(won if one.first == ALIGNED else 1 - won)
    return {key: float(np.mean(own)) for key, own in votes.items()}


def _agreement(pairs: Sequence[tuple[str, float, float]], confidence: float) -> dict[str, float | int | None]:
    from scipy.stats import spearmanr

    preferred = [(prompt, share, gap) for prompt, share, gap in pairs if share != _WON["tie"]]
    agrees = [0.5 if gap == 0 else float((gap > 0) == (share > _WON["tie"])) for _, share, gap in preferred]
    prompts: dict[str, list[float]] = defaultdict(list)
    for (prompt, _, _), value in zip(preferred, agrees, strict=True):
        prompts[prompt].append(value)
    means = np.array([np.mean(own) for own in prompts.values()])
    low = high = None
    mean = float(means.mean()) if len(means) else None
    if len(means) > 1:
        constant = bool(np.ptp(means) == 0)
        freedom = math.inf if constant else float(len(means) - 1)
        own = Estimate(
            float(means.mean()), float(means.var(ddof=1) / len(means)), freedom, 2, len(means), constant
        )
        ends = rate_interval(own, confidence)
        low, high = (None if math.isnan(end) else end for end in ends)
    shares, gaps = [one[1] for one in pairs], [one[2] for one in pairs]
    varied = len(pairs) >= LEAST_ITEMS and len(set(shares)) > 1 and len(set(gaps)) > 1
    correlation = float(spearmanr(shares, gaps).statistic) if varied else None
    return {
        "agreement": mean,
        "low": low,
        "high": high,
        "pairs": len(preferred),
        "correlation": correlation,
    }
