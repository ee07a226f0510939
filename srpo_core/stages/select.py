"""Stage select: choose the best checkpoint on validation prompts, not the last one."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Final

import torch

from srpo_core import artifacts
from srpo_core.config import (
    ControlWords,
    GenerateSettings,
    ModelSettings,
    ResourceSettings,
    RewardSettings,
    ScorerSettings,
    SelectSettings,
)
from srpo_core.generation.batches import generate_batches
from srpo_core.generation.generated import GeneratedBatches
from srpo_core.generation.images import ImageSet
from srpo_core.generation.job import GenerationJob
from srpo_core.models import LoadedBase
from srpo_core.models.embeddings import read_embeddings
from srpo_core.scorers.metrics import MetricContext, check_metrics
from srpo_core.selection.choice import rounds_of, selection_of
from srpo_core.selection.halving import BASE_STEP, Compared, Figures, compare_in_rounds, means_of, round_sizes

PURPOSE: Final = "select"

log = logging.getLogger(__name__)


def run(
    *,
    seed: int,
    model: ModelSettings,
    rewards: list[RewardSettings],
    select_judge: ScorerSettings,
    control_words: ControlWords,
    generate: GenerateSettings,
    select: SelectSettings,
    resources: ResourceSettings,
) -> None:
    """Generate images of the validation prompts with the base and every checkpoint, measure them, and choose.

    With `select.halving`, clearly worse checkpoints get no images of the later prompts (srpo_core/selection/halving.py).

    Writes runs/select/scores.parquet (one row per image: step, 0 being the base, prompt, style,
    seed, metrics) and runs/select/selection.json. An interrupted run generates only the missing images.

    Raises:
        ArtifactError: there is no checkpoint, or one is damaged.
        ConfigError: an unknown metric, or one that these settings do not allow.
        DivergenceError: an image or a figure is NaN or infinite.
    """
    torch.set_num_threads(resources.threads_per_worker)
    steps = artifacts.saved_steps()
    prompts, styles, condition = read_embeddings("validation")
    image_set = ImageSet(PURPOSE, prompts, styles, condition, select.seeds_per_prompt, seed)
    metrics = sorted({select.maximize, *select.keep})
    context = MetricContext(rewards, select_judge, control_words)
    check_metrics(metrics, context, prompts, select.seeds_per_prompt)
    rounds = [image_set.of(rows) for rows in rounds_of(prompts, styles, seed, select)]
    held: list[GeneratedBatches] = []

    def measured(step: int, number: int) -> Figures:
        transformer = None if step == BASE_STEP else artifacts.step_directory(step)
        keep = transformer is None  # later runs use the base's images again
        job = GenerationJob(
            _name(step), model, transformer, rounds[number], generate, metrics, context, keep=keep
        )
        own = files.enter_context(closing(generate_batches(job, resources, loaded)))
        held.append(own)
        figures = {name: values.tolist() for name, values in own.figures().items()}
        log.info(
            "%s on %d prompts: %s", _name(step), len(rounds[number].prompts), _summary(means_of(figures))
        )
        return figures

    with ExitStack() as files, closing(LoadedBase(model, generate, offload=resources.offload)) as loaded:
        compared = compare_in_rounds(steps, round_sizes(len(prompts), select.halving), measured, select)
        _write(compared, rounds, select)
        for own in held:
            own.discard()


def _write(compared: Compared, rounds: list[ImageSet], select: SelectSettings) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    selection = selection_of(compared, select)
    places = [(part.prompts[index], part.styles[index], k) for part in rounds for index, k in part.places()]
    rows = [
        {"step": step, "prompt": prompt, "style": style, "seed": k}
        | {name: values[row] for name, values in own.items()}
        for step, own in compared.figures.items()
        for row, (prompt, style, k) in enumerate(places[: len(own[select.maximize])])
    ]
    with artifacts.replacing(artifacts.SELECT_SCORES) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
    artifacts.write_json(artifacts.SELECTION, selection)
    log.info("%s", selection["reason"])


def _name(step: int) -> str:
    return "base" if step == BASE_STEP else f"step {step}"


def _summary(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in means.items())
