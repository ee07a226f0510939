"""The rows that an evaluation must have, known from the settings and the prompts and not from its table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srpo_core.artifacts import ALIGNED, BASE, CHAMPION
from srpo_core.config import EvaluateSettings
from srpo_core.gates.bootstrap import Floats
from srpo_core.gates.pairs import Pairs, damaged
from srpo_core.gates.spending import Stage, stage_sizes
from srpo_core.prompts import balanced_order, normal_form


@dataclass(frozen=True)
class Expected:
    """The images and metrics of a complete evaluation: each model has each prompt with each seed once.

    prompts: those that stage embed chose of the split test, in the order of `balanced_order`; metrics: names that must be
    measured, others may be; sizes: of how many of the first prompts the evaluation may consist, one for each stage.
    """

    prompts: tuple[str, ...]
    seeds_per_prompt: int
    champion: bool
    metrics: tuple[str, ...]
    sizes: tuple[int, ...]


def expected_rows(
    prompts: Sequence[str], styles: Sequence[str], seed: int, evaluate: EvaluateSettings, champion: str | None
) -> Expected:
    """Describe the evaluation that these settings, test prompts and their styles lead to."""
    metrics = tuple(dict.fromkeys([*evaluate.metrics, *evaluate.scorers]))
    ordered = tuple(prompts[index] for index in balanced_order(prompts, styles, seed))
    sizes = stage_sizes(len(prompts), evaluate.stages)
    return Expected(ordered, evaluate.seeds_per_prompt, champion is not None, metrics, sizes)


def require_complete(pairs: Pairs, expected: Expected, source: Path) -> Stage:
    """Require every image and metric of the evaluation until one of its stages, and no others; return this stage.

    Raises:
        ArtifactError: a prompt, a seed, a model or a metric is missing, or one is there that was not asked for.
    """
    if (pairs.champion is not None) != expected.champion:
        has, asks = ("no rows", "names one") if expected.champion else ("rows", "names none")
        raise damaged(source, f"has {has} of the {CHAMPION}, but champion in params.yaml {asks}")
    if lacking := [name for name in expected.metrics if name not in pairs.aligned]:
        raise damaged(source, f"lacks {len(lacking)} metrics of evaluate, the first is {lacking[0]}")
    counts = [len(set(map(normal_form, expected.prompts[:size]))) for size in expected.sizes]
    last = len(counts) - 1
    stage = Stage(counts.index(len(pairs.prompts)) if len(pairs.prompts) in counts else last, expected.sizes)
    prompts = expected.prompts[: stage.size]
    spelled = {normal_form(prompt): prompt for prompt in (*pairs.prompts, *expected.prompts)}
    forms = [normal_form(prompt) for prompt in pairs.prompts]
    found = Counter(
        (forms[index], int(seed)) for index, seed in zip(pairs.prompt_index, pairs.seeds, strict=True)
    )
    wanted = Counter(
        (normal_form(prompt), seed) for prompt in prompts for seed in range(expected.seeds_per_prompt)
    )
    first = "" if stage.is_last else "the first "
    size = f"{first}{len(prompts)} prompts with {expected.seeds_per_prompt} seeds each"
    for what, odd in (("lacks", wanted - found), ("also has", found - wanted)):
        if odd:
            form, seed = min(odd)
            raise damaged(
                source,
                f"must have {size}, but {what} {odd.total()} images of each model, for instance prompt "
                f"{spelled[form]!r} seed {seed}",
            )
    return stage


def require_means(
    pairs: Pairs, means: Mapping[str, Mapping[str, float]], source: Path, summary: Path
) -> None:
    """Require that each model's figures have the means that stage evaluate wrote when it measured them.

    Rows whose models were exchanged, or whose figures were changed, pair like others; their means give them away.

    means: model -> metric -> mean, from `summary`.

    Raises:
        ArtifactError: a model is missing in the summary, its means are those of another model, or one of them differs.
    """
    models = {BASE: pairs.base, ALIGNED: pairs.aligned, CHAMPION: pairs.champion}
    for model, figures in models.items():
        if figures is None:
            continue
        if model not in means:
            raise damaged(summary, f"has no means of the {model}")
        odd = _other_means(figures, means[model])
        if not odd:
            continue
        for other, theirs in means.items():
            if other != model and not _other_means(figures, theirs):
                raise damaged(source, f"has the figures of the {other} in the rows of the {model}")
        found, written = float(np.mean(figures[odd[0]])), means[model].get(odd[0])
        raise damaged(
            source, f"gives a mean {odd[0]} of {found:.6g} for the {model}, but {summary} says {written}"
        )


def _other_means(figures: Mapping[str, Floats], means: Mapping[str, float]) -> list[str]:
    """Return the metrics whose mean is missing in `means` or differs by more than rounding."""
    return [
        metric
        for metric, own in figures.items()
        if not np.isclose(np.mean(own), means.get(metric, np.inf), rtol=1e-6, atol=1e-9, equal_nan=True)
    ]


def unmeasured(pairs: Pairs) -> dict[str, str]:
    """Find the metrics with figures that are not finite numbers; the value says how many and where the first is."""
    faults: dict[str, str] = {}
    models = {BASE: pairs.base, ALIGNED: pairs.aligned, CHAMPION: pairs.champion or {}}
    for metric in pairs.metrics:
        bad = {
            model: np.flatnonzero(~np.isfinite(own[metric])) for model, own in models.items() if metric in own
        }
        if not (count := sum(map(len, bad.values()))):
            continue
        model, first = next((model, places[0]) for model, places in bad.items() if len(places))
        place = (
            f"model {model}, prompt {pairs.prompts[pairs.prompt_index[first]]!r}, seed {pairs.seeds[first]}"
        )
        faults[metric] = f"{metric} is not a finite number in {count} images (first: {place})"
    return faults
