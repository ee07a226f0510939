"""Stage evaluate: the base and the selected model on test prompts, from the same noise."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from srpo_core import artifacts
from srpo_core.config import (
    ControlWords,
    DrawSettings,
    EvaluateSettings,
    ModelSettings,
    ResourceSettings,
    ScorerSettings,
)
from srpo_core.errors import ArtifactError
from srpo_core.models import load_base, load_transformer
from srpo_core.models.embeddings import read_embeddings
from srpo_core.pictures import MeasuredPicture, PictureSet, draw_and_measure, mean_figures, to_png
from srpo_core.scorers.metrics import MetricContext, check_metrics

BASE: Final = "base"
ALIGNED: Final = "aligned"

log = logging.getLogger(__name__)


def run(
    *,
    seed: int,
    model: ModelSettings,
    reward: ScorerSettings,
    judge: ScorerSettings,
    control_words: ControlWords,
    draw: DrawSettings,
    evaluate: EvaluateSettings,
    resources: ResourceSettings,
) -> None:
    """Draw the test prompts by both models and measure every picture.

    Writes runs/evaluate/images.parquet (one row per picture: model "base" or "aligned", prompt,
    style, seed, png, one column per metric; the two models' rows pair by prompt and seed) and the
    means in runs/evaluate/summary.json.

    Raises:
        ArtifactError: the selection or its checkpoint is missing or damaged.
        ConfigError: an unknown metric, or one that these settings do not allow.
    """
    torch.set_num_threads(resources.threads_per_worker)
    step, checkpoint = _selected()
    prompts, styles, condition = read_embeddings("test")
    pictures = PictureSet("evaluate", prompts, styles, condition, evaluate.seeds_per_prompt, seed)
    metrics = list(dict.fromkeys(evaluate.metrics))
    context = MetricContext(reward, judge, control_words)
    check_metrics(metrics, context, prompts, evaluate.seeds_per_prompt)

    base = load_base(model)
    measured = {}
    for name in (BASE, ALIGNED):
        if name == ALIGNED:
            base.transformer = load_transformer(model, checkpoint)
        measured[name] = draw_and_measure(base, name, pictures, draw=draw, metrics=metrics, context=context)
    _write_pictures(measured)
    _write_summary(measured, metrics, step)


def _selected() -> tuple[int, Path]:
    """Step and directory of the checkpoint that select chose."""
    selection = artifacts.read_json(artifacts.SELECTION)
    try:
        return int(selection["step"]), Path(selection["checkpoint"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{artifacts.SELECTION} is damaged ({error!r}): run 'dvc repro --force select'"
        ) from None


def _write_pictures(measured: Mapping[str, Sequence[MeasuredPicture]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "model": name,
            "prompt": picture.prompt,
            "style": picture.style,
            "seed": picture.seed,
            "png": to_png(picture.pixels),
        }
        | picture.figures
        for name, pictures in measured.items()
        for picture in pictures
    ]
    with artifacts.replacing(artifacts.EVALUATION) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def _write_summary(
    measured: Mapping[str, Sequence[MeasuredPicture]], metrics: Sequence[str], step: int
) -> None:
    means = {name: mean_figures(pictures, metrics) for name, pictures in measured.items()}
    change = {metric: means[ALIGNED][metric] - means[BASE][metric] for metric in metrics}
    summary = {"step": step, "pictures_per_model": len(measured[BASE]), "means": means, "change": change}
    artifacts.write_json(artifacts.EVALUATION_SUMMARY, summary)
    for metric in metrics:
        log.info("%s: %.3f → %.3f", metric, means[BASE][metric], means[ALIGNED][metric])
