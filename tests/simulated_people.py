"""Simulated raters: answers to a task by people with a known preference, who may be lazy or prefer a side."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from srpo_core.rating.clustered import Estimate, estimate
from srpo_core.rating.records import CHECK, DIMENSIONS, LEVEL_ANSWERS, OVERALL, PLAIN, REPEAT, Rating

WHEN = "2026-11-30T12:00:00+00:00"


@dataclass(frozen=True)
class People:
    """How raters answer pairs.

    gain: how much better the aligned image is than the base's, in standard deviations of a rater's noise. raters, prompts:
    standard deviations of the gain between raters and between prompts. tie: differences below it are ties.
    """

    gain: float = 0.6
    raters: float = 0.3
    prompts: float = 0.5
    tie: float = 0.3

    @property
    def win_rate(self) -> float:
        """The true win rate of the aligned model over all raters and prompts, a tie counts half."""
        spread = (1 + self.raters**2 + self.prompts**2) ** 0.5
        return float(ndtr((self.gain - self.tie) / spread) + ndtr((self.gain + self.tie) / spread)) / 2

    def differences(self, raters: int, prompts: int, generator: np.random.Generator) -> np.ndarray:
        """Draw how much better each rater finds the aligned image of each prompt, (raters, prompts)."""
        between_raters = generator.normal(0, self.raters, (raters, 1))
        between_prompts = generator.normal(0, self.prompts, (1, prompts))
        return self.gain + between_raters + between_prompts + generator.normal(size=(raters, prompts))

    def values(self, raters: int, prompts: int, generator: np.random.Generator) -> np.ndarray:
        """Draw the answers as 1, ½ or 0 for the aligned model, (raters, prompts)."""
        found = self.differences(raters, prompts, generator)
        return np.where(found > self.tie, 1.0, np.where(found < -self.tie, 0.0, 0.5))


def rating(**changes) -> Rating:
    """Return an answer with some fields changed."""
    fields = {
        "task": "t1",
        "protocol": "paired",
        "rater": "ada",
        "item": "i0",
        "kind": PLAIN,
        "prompt": "a cat",
        "style": "photo",
        "sample": 0,
        "first": "base",
        "second": "tiny/v3",
        "dimension": OVERALL,
        "answer": "second",
        "first_on_left": True,
        "repeats": "",
        "expected": "",
        "seconds": 4.0,
        "page": "0123456789ab",
        "answered_at": WHEN,
    }
    return Rating(**(fields | changes))


def paired_answers(
    values: np.ndarray,
    generator: np.random.Generator,
    *,
    styles=("photo", "anime"),
    first="base",
    second="new",
) -> list[Rating]:
    """Return plain answers from values (raters, prompts) for `second`."""
    words = {1.0: "second", 0.0: "first", 0.5: "tie"}
    return [
        rating(
            rater=f"r{r}",
            item=f"{first}-{second}-{p}",
            prompt=f"prompt {p}",
            style=styles[p % len(styles)],
            first=first,
            second=second,
            answer=words[float(value)],
            first_on_left=bool(generator.integers(2)),
        )
        for r, row in enumerate(values)
        for p, value in enumerate(row)
    ]


def checks(rater: str, number: int, chance: float, generator: np.random.Generator) -> list[Rating]:
    """Return the answers of a rater who is right in each of `number` obvious pairs with a chance."""
    return [
        rating(
            rater=rater,
            item=f"check {n}",
            kind=CHECK,
            expected="first",
            answer="first" if generator.random() < chance else "second",
            first_on_left=bool(generator.integers(2)),
        )
        for n in range(number)
    ]


def repeats(answers: list[Rating], number: int, same: float, generator: np.random.Generator) -> list[Rating]:
    """Return repeats of the first `number` answers, which are the same as before with a chance."""
    from dataclasses import replace

    other = {"first": "second", "second": "first", "tie": "first", "both_bad": "tie"}
    return [
        replace(
            one,
            item=f"again {one.item}",
            kind=REPEAT,
            repeats=one.item,
            answer=one.answer if generator.random() < same else other[one.answer],
        )
        for one in answers[:number]
    ]


def level_answers(raters: int, prompts: int, rates: dict[str, float], generator) -> list[Rating]:
    """Return plain answers with levels: each model's images are excellent at its rate on every dimension, else good."""
    return [
        rating(
            protocol="levels",
            rater=f"r{r}",
            item=f"{model}-{p}",
            prompt=f"prompt {p}",
            first=model,
            second="",
            dimension=dimension,
            answer=LEVEL_ANSWERS[int(generator.random() >= rate)],
        )
        for r in range(raters)
        for p in range(prompts)
        for model, rate in rates.items()
        for dimension in DIMENSIONS
    ]


def of_table(table: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Estimate the mean of answers (raters, prompts), with a weight of each rater."""
    raters, prompts = table.shape
    weight = np.ones(raters) if weights is None else weights
    return estimate(
        table.ravel(),
        np.repeat(weight, prompts),
        np.repeat(np.arange(raters), prompts).tolist(),
        np.tile(np.arange(prompts), raters).tolist(),
    )
