"""Checking and measuring metrics by name."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from srpo_core.errors import ConfigError, DataError
from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.metrics.metric import Compared
from srpo_core.scorers.metrics.registry import find_metric, require_fitting_judge, require_free_names

MIN_REAL: Final = 2  # a distance between images of one kind needs two


def check_metrics(
    names: Sequence[str],
    context: MetricContext,
    prompts: Sequence[str],
    num_seeds: int,
    *,
    beside_base: bool = False,
) -> None:
    """Check, before images are generated, that every metric can be computed for these prompts.

    beside_base: whether the images are compared with the base's from the same noise.

    Raises:
        ConfigError: a metric is unknown, does not fit the judge, or lacks seeds, real images or the base's images; a
            wanted word is not a style of the judge; a scorer has a metric's name.
        DataError: the judge does not know a prompt's subject, or there are too few real images.
    """
    require_free_names(context.scorer_settings)
    for name in names:
        metric = find_metric(name, context.scorer_settings)
        require_fitting_judge(name, metric, context.judge_settings.scorer)
        if metric.needs_seeds and num_seeds == 1:
            raise ConfigError(
                f"metric {name!r} compares the images of a prompt, but seeds_per_prompt is 1: set it to 2 or more in "
                "params.yaml, or drop the metric"
            )
        if metric.beside_base is not None and not beside_base:
            raise ConfigError(
                f"metric {name!r} compares with the base's images from the same noise, which only the stage evaluate "
                "does: drop it here"
            )
        metric.check(context, prompts)
        if metric.needs_real_images:
            _require_real_images(name, context)


@torch.no_grad()
def measure(names: Sequence[str], images: Tensor, prompt: str, context: MetricContext) -> dict[str, Tensor]:
    """Measure images (K, 3, H, W) in [0, 1] of one prompt: one figure per image, (K,), by metric, on the CPU.

    For a metric over all images the result is what it needs of each image, (K, ...); see `finish`.
    """
    images = images.to(context.device)
    scorers = context.scorer_settings
    return {name: find_metric(name, scorers).figures(images, prompt, context).cpu() for name in names}


@torch.no_grad()
def finish(
    name: str,
    found: Tensor,
    context: MetricContext,
    *,
    base: Tensor | None = None,
    prompts: Tensor | None = None,
) -> Tensor:
    """Turn the results of `measure` for all images of a model, (P,) or (P, ...), into one figure per image, (P,).

    base, prompts: the base's results for the same prompts and noise, and the number of each image's prompt. A metric
    that compares with the base needs them; see `check_metrics`.
    """
    metric = find_metric(name, context.scorer_settings)
    if metric.beside_base is not None:
        assert base is not None, "checked before images are generated"
        assert prompts is not None, "given together with the base's images"
        return metric.beside_base(Compared(found, base, prompts), context).double().expand(len(found))
    return found if metric.over_all is None else metric.over_all(found, context)


def _require_real_images(name: str, context: MetricContext) -> None:
    if context.real is None:
        raise ConfigError(
            f"metric {name!r} compares with real images, which only the stage evaluate reads (evaluate.real_images): "
            "drop it here"
        )
    if (found := len(context.real_features)) < MIN_REAL:
        raise DataError(
            f"metric {name!r} needs {MIN_REAL} preferred images of held-out pairs in the wanted style, but the judge "
            f"finds {found}: add pairs, raise evaluate.real_images, or drop the metric"
        )
