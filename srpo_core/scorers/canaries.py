"""Questions with known answers for a scorer, before its scores are used.

A scorer that is loaded wrongly or used wrongly returns numbers like any other: with swapped arguments, a constant, the
weights of another model or a head that was never trained. So each one first compares images of known prompts with
images that must score lower: those that people preferred in the data, or `drawn_examples` if the data have no pairs. It must be right in at least `LEAST_RIGHT` of the comparisons of each kind: a single
prompt may be ambiguous, and a scorer that guesses reaches that share of 16 comparisons by chance once in 26 times.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from srpo_core.config import ScorerSettings
from srpo_core.errors import GateError
from srpo_core.randomness import keyed_generator
from srpo_core.scorers.registry import SCORERS, load_scorer
from srpo_core.scorers.subjects import subject_of

LEAST_RIGHT: Final = 3 / 4
# of the pairs of images that people compared: scorers and people differ in many of them
LEAST_PREFERRED: Final = 1 / 4
FEWEST_PREFERENCES: Final = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """An image (1, 3, H, W) in [0, 1] of a prompt, and one that people rejected; None if nobody compared it."""

    prompt: str
    preferred: Tensor
    rejected: Tensor | None = None

    def to(self, device: torch.device) -> "Example":
        """Return the example with its images on a device."""
        rejected = None if self.rejected is None else self.rejected.to(device)
        return Example(self.prompt, self.preferred.to(device), rejected)


@dataclass(frozen=True)
class Comparison:
    """One question: does `better` score higher than `worse`? Both are scores."""

    kind: str
    prompt: str
    better: float
    worse: float


Score = Callable[[Tensor, str], float]


def require_known_answers(
    scorers: Mapping[str, ScorerSettings], examples: Sequence[Example], device: torch.device
) -> None:
    """Load each scorer, ask it, and release it. scorers: by the name that the settings give it.

    Raises:
        GateError: a scorer fails a question; the message names the scorer and the question.
        ConfigError, ArtifactError: see `load_scorer`.
    """
    for name, settings in scorers.items():
        require_answers(
            f"{name} ({settings.scorer} in {settings.path})",
            load_scorer(settings).to(device),
            examples,
            device,
            reads_texts=SCORERS[settings.scorer].reads_texts,
        )
    log.info("%s: answered questions with known answers", ", ".join(scorers))


@torch.no_grad()
def require_answers(
    name: str, scorer: Any, examples: Sequence[Example], device: torch.device, *, reads_texts: bool = True
) -> None:
    """Ask a `RewardModel` or a `Judge` and require right answers.

    name: what an error calls it; reads_texts: see `ScorerEntry`.

    Raises:
        GateError: it gives a score that is no finite number, or fails a question.
    """
    on_device = [one.to(device) for one in examples]
    compared = [one for one in on_device if one.rejected is not None]
    if hasattr(scorer, "score"):
        asked = _ask(_text_score(scorer), on_device, other_prompts=reads_texts, no_prompt=reads_texts)
    else:
        known = [one for one in on_device if subject_of(one.prompt, scorer.subjects) is not None]
        asked = _ask(_subject_score(scorer), known, other_prompts=True, no_prompt=False)
        if compared:  # a judge of photos need not know the style of other images
            _require_sure_of_style(name, scorer, compared)
        else:
            log.warning("%s: its styles were not checked, because the data have no pairs", name)
    if not asked:
        log.warning(
            "%s: no prompt of the %s names a subject that it knows, so its subjects were not checked",
            name,
            "held-out pairs" if compared else "questions with known answers",
        )
    for kind in dict.fromkeys(one.kind for one in asked):
        _require_right(name, kind, [one for one in asked if one.kind == kind])


def _ask(
    score: Score, examples: Sequence[Example], *, other_prompts: bool, no_prompt: bool
) -> list[Comparison]:
    """Compare each example with what must score lower; for scorers of prompts, also with another and with no prompt."""
    asked: list[Comparison] = []
    for index, one in enumerate(examples):
        own = score(one.preferred, one.prompt)
        worse = {"noise": _noise_like(one.preferred, index), "a black image": torch.zeros_like(one.preferred)}
        other = examples[(index + 1) % len(examples)]
        if other_prompts and other.prompt != one.prompt:
            worse["the image of another prompt"] = other.preferred
        for kind, image in worse.items():
            asked.append(
                Comparison(
                    f"an image must fit its prompt better than {kind} does",
                    one.prompt,
                    own,
                    score(image, one.prompt),
                )
            )
        if no_prompt:
            asked.append(
                Comparison(
                    "an image must fit its prompt better than an empty prompt",
                    one.prompt,
                    own,
                    score(one.preferred, ""),
                )
            )
        if one.rejected is not None:
            asked.append(Comparison(_PREFERENCE, one.prompt, own, score(one.rejected, one.prompt)))
    return asked


_PREFERENCE: Final = "not all preferences of people may be inverted"


def _require_right(name: str, kind: str, asked: Sequence[Comparison]) -> None:
    broken = [one for one in asked if not all(map(_is_finite, (one.better, one.worse)))]
    if broken:
        raise GateError(
            f"the scorer {name} gives no finite score for the prompt {broken[0].prompt!r} ({broken[0].better} and "
            f"{broken[0].worse}; question: {kind}): check its files with 'srpo doctor'"
        )
    wrong = [one for one in asked if not one.better > one.worse]
    right = len(asked) - len(wrong)
    preference = kind == _PREFERENCE
    if preference and len(asked) < FEWEST_PREFERENCES:
        return
    if right < (LEAST_PREFERRED if preference else LEAST_RIGHT) * len(asked):
        first = wrong[0]
        raise GateError(
            f"the scorer {name} fails a question with a known answer: {kind}; it is right for only {right} of "
            f"{len(asked)} prompts (for {first.prompt!r} it scores {first.better:.4g} against {first.worse:.4g}), so its "
            "scores mean nothing: check its weights and its path in params.yaml"
        )


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _require_sure_of_style(name: str, judge: Any, examples: Sequence[Example]) -> None:
    """Require that a judge names the style of real images: an untrained head is sure of none.

    The mean probability of its first guess must lie above the middle between a guess, 1/S, and certainty.
    """
    sure = torch.cat([judge.style_probabilities(one.preferred).max(1).values for one in examples])
    mean, least = float(sure.mean()), (1 + 1 / len(judge.styles)) / 2
    if not mean >= least:
        raise GateError(
            f"the scorer {name} fails a question with a known answer: real images must have a style; its first guess "
            f"has the mean probability {mean:.3f} in {len(examples)} of them, and {least:.3f} is required, so its style "
            "head is not trained: check its weights and its path in params.yaml"
        )


def _text_score(scorer: Any) -> Score:
    def score(image: Tensor, prompt: str) -> float:
        return float(scorer.score(image, [prompt]))

    return score


def _subject_score(judge: Any) -> Score:
    def score(image: Tensor, prompt: str) -> float:
        logits = judge.subject_logits(image)
        return float(logits.log_softmax(-1)[0, subject_of(prompt, judge.subjects)])

    return score


def _noise_like(image: Tensor, index: int) -> Tensor:
    generator = keyed_generator(0, "canary", index)
    return torch.rand(image.shape, generator=generator).to(image)
