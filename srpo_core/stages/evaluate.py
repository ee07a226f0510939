"""Stage evaluate: the base, the selected model and the champion on test prompts, from the same noise."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from srpo_core import artifacts
from srpo_core.artifacts import ALIGNED, BASE, CHAMPION
from srpo_core.config import (
    ControlWords,
    EvaluateSettings,
    GateSettings,
    GenerateSettings,
    ModelSettings,
    ResourceSettings,
    RewardSettings,
    ScorerSettings,
    rewards_by_name,
)
from srpo_core.data.tables import NUM_EXAMPLES, read_examples, read_images, to_tensor
from srpo_core.data.used_images import compared_images
from srpo_core.errors import ArtifactError
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.spending import Stage, stage_sizes
from srpo_core.gates.staged import outcome
from srpo_core.generation.batches import generate_batches
from srpo_core.generation.generated import GeneratedBatches, figures_together
from srpo_core.generation.images import ImageSet, to_png
from srpo_core.generation.job import GenerationJob
from srpo_core.models import LoadedBase
from srpo_core.models.embeddings import read_embeddings
from srpo_core.prompts import balanced_order, require_unseen
from srpo_core.release.champion import champion_transformer
from srpo_core.runtime.ray_cluster import local_device
from srpo_core.scorers.canaries import Example, require_known_answers
from srpo_core.scorers.hps_v2 import benchmark
from srpo_core.scorers.known_images import drawn_examples
from srpo_core.scorers.metrics import MetricContext, check_metrics, metric_names

if TYPE_CHECKING:
    from torch import Tensor

HPS: Final = "hps_v2"

Ends = Callable[[Any, Stage], bool]

log = logging.getLogger(__name__)


def run(  # noqa: PLR0913  # the parts of the settings that DVC tracks
    *,
    seed: int,
    model: ModelSettings,
    rewards: list[RewardSettings],
    judge: ScorerSettings,
    control_words: ControlWords,
    champion: str | None,
    generate: GenerateSettings,
    evaluate: EvaluateSettings,
    gate: GateSettings,
    resources: ResourceSettings,
) -> None:
    """Generate images of the test prompts with every model and measure each image.

    With several `evaluate.stages`, the evaluation ends at the first stage at which the gate's rules are decided.

    Writes runs/evaluate/images.parquet (one row per image: model "base", "aligned" or "champion", prompt,
    style, seed, png), figures.parquet (one row per image and metric; rows of the models pair by prompt and
    seed) and the means in summary.json.

    Raises:
        ArtifactError: the selection, its checkpoint or the champion is missing or damaged.
        ConfigError: a metric is unknown or cannot be measured with these settings.
        DataError: a test prompt was trained on or chose the checkpoint, or there are no held-out pairs.
        GateError: a scorer fails a question with a known answer.
    """
    selection, step, checkpoint = _selected()
    summary = evaluate_models(
        models_to_compare(checkpoint, champion),
        artifacts.EVALUATION.parent,
        seed=seed,
        model=model,
        context=metric_context(rewards, judge, control_words, evaluate),
        generate=generate,
        evaluate=evaluate,
        ends=ends_when_decided(selection, seed, gate),
        resources=resources,
    )
    artifacts.write_json(artifacts.EVALUATION_SUMMARY, {"step": step, "champion": champion, **summary})


def models_to_compare(checkpoint: Path, champion: str | None) -> dict[str, Path | None]:
    """Map base, checkpoint and, if there is one, champion to their weights, as `evaluate_models` expects them.

    Raises:
        StoreError: the store in SRPO_STORE has no such champion, or one of its files is missing or altered.
    """
    models: dict[str, Path | None] = {BASE: None, ALIGNED: checkpoint}
    if champion is not None:
        models[CHAMPION] = champion_transformer(champion)
    return models


def metric_context(
    rewards: list[RewardSettings],
    judge: ScorerSettings,
    control_words: ControlWords,
    evaluate: EvaluateSettings,
) -> MetricContext:
    """Make the context of the evaluation's metrics."""
    real, training = (
        partial(_images_of_pairs, split, evaluate.real_images) if evaluate.real_images else None
        for split in ("test", "train")
    )
    return MetricContext(rewards, judge, control_words, dict(evaluate.scorers), real, training)


def evaluate_models(  # noqa: PLR0913  # the settings of `run`
    transformers: Mapping[str, Path | None],
    target: Path,
    *,
    seed: int,
    model: ModelSettings,
    context: MetricContext,
    generate: GenerateSettings,
    evaluate: EvaluateSettings,
    ends: Ends,
    resources: ResourceSettings,
) -> dict[str, Any]:
    """Generate the test prompts with models (name: directory of weights, None for the base), and measure each image.

    Writes images.parquet and figures.parquet into `target`, as described in `run`, and returns the means. Before an image
    is generated, every scorer answers the questions of `srpo_core/scorers/canaries.py`.

    ends: whether the evaluation ends at a stage, by its figures.
    """
    torch.set_num_threads(resources.threads_per_worker)
    prompts, styles, condition = read_embeddings("test")
    require_unseen(prompts)
    image_set = ImageSet("evaluate", prompts, styles, condition, evaluate.seeds_per_prompt, seed)
    metrics = metric_names(evaluate.metrics, list(evaluate.scorers))
    check_metrics(metrics, context, prompts, evaluate.seeds_per_prompt, beside_base=True)
    for path in filter(None, transformers.values()):
        artifacts.require(path)
    require_known_answers_of_scorers(context, local_device(resources))
    sizes = stage_sizes(len(prompts), evaluate.stages)
    order = balanced_order(prompts, styles, seed)
    seen: list[int] = []
    batches: dict[str, list[GeneratedBatches]] = {name: [] for name in transformers}
    with ExitStack() as held, closing(LoadedBase(model, generate, offload=resources.offload)) as loaded:
        for number, (start, stop) in enumerate(pairwise([0, *sizes])):
            rows = sorted(order[start:stop])
            seen += rows
            # every second stage in reverse order, so that it begins with the model that is in memory
            for name in list(transformers)[:: -1 if number % 2 else 1]:
                weights = transformers[name]
                keep = name in (BASE, CHAMPION)
                part = image_set.of(rows)
                job = GenerationJob(name, model, weights, part, generate, metrics, context, keep=keep)
                batches[name].append(held.enter_context(closing(generate_batches(job, resources, loaded))))
            figures = {name: figures_together(own, batches[BASE]) for name, own in batches.items()}
            table = _figures_table(figures, image_set.of(seen))
            if (stage := Stage(number, sizes)).is_last or ends(table, stage):
                break
        _write_images(batches, target / artifacts.EVALUATION.name)
        _write_table(table, target / artifacts.FIGURES.name)
        for own in (one for several in batches.values() for one in several):
            own.discard()
    return _summary(figures, image_set.of(seen), context)


def require_known_answers_of_scorers(context: MetricContext, device: torch.device) -> None:
    """Ask every scorer questions with known answers, about the held-out pairs, or `drawn_examples` without pairs."""
    examples = [Example(*one) for one in read_examples(NUM_EXAMPLES)] or drawn_examples()
    require_known_answers(context.all_settings, examples, device)


def ends_when_decided(selection: Mapping[str, Any], seed: int, gate: GateSettings) -> Ends:
    """Return the function by which an evaluation ends: the gate's rules are decided at a stage.

    selection: the result of stage select.
    """

    def ends(table: Any, stage: Stage) -> bool:
        found = outcome(pair_up(table, artifacts.FIGURES), selection, seed=seed, gate=gate, stage=stage)
        log.info("after %d of %d prompts: %s", stage.size, stage.num_prompts[-1], found)
        return found != "undecided"

    return ends


def _selected() -> tuple[dict[str, Any], int, Path]:
    """Read the selection, and in it step and directory of the checkpoint that select chose."""
    selection = artifacts.read_json(artifacts.SELECTION)
    try:
        return selection, int(selection["step"]), Path(selection["checkpoint"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{artifacts.SELECTION} is damaged ({error!r}): run 'dvc repro --force select'"
        ) from None


def _images_of_pairs(split: str, count: int) -> Iterator["Tensor"]:
    """Yield the preferred images of up to `count` pairs, each (1, 3, H, W) in [0, 1]; their sizes differ.

    If the data have no pairs, they are up to `count` of the images with captions.
    """
    paths = compared_images(split, count)
    if not paths:
        return
    images = read_images(paths)
    for path in paths:
        yield to_tensor(images[path])


def _write_images(batches: Mapping[str, Sequence[GeneratedBatches]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [(name, pa.string()) for name in ("model", "prompt", "style")]
    schema = pa.schema([*texts, ("seed", pa.int64()), ("png", pa.binary())])
    with artifacts.replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for name, several in batches.items():
            for image_set, generated in chain.from_iterable(several):
                keys = (_key(name, image_set, index, k) for index, k in image_set.places())
                rows = [
                    key | {"png": to_png(pixels)} for key, pixels in zip(keys, generated.pixels, strict=True)
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema))


def _figures_table(figures: Mapping[str, Mapping[str, "Tensor"]], image_set: ImageSet) -> Any:
    import pyarrow as pa

    rows = [
        _key(name, image_set, index, k) | {"metric": metric, "value": value}
        for name, own in figures.items()
        for metric, values in own.items()
        for (index, k), value in zip(image_set.places(), values.tolist(), strict=True)
    ]
    return pa.Table.from_pylist(rows)


def _write_table(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    with artifacts.replacing(path) as partial:
        pq.write_table(table, partial)


def _key(name: str, image_set: ImageSet, index: int, k: int) -> dict[str, Any]:
    return {"model": name, "prompt": image_set.prompts[index], "style": image_set.styles[index], "seed": k}


def _summary(
    figures: Mapping[str, Mapping[str, "Tensor"]], image_set: ImageSet, context: MetricContext
) -> dict[str, Any]:
    means = {
        name: {metric: float(values.double().mean()) for metric, values in own.items()}
        for name, own in figures.items()
    }
    summary: dict[str, Any] = {"images_per_model": len(image_set), "means": means}
    if ALIGNED in means:
        summary["change"] = {m: means[ALIGNED][m] - means[BASE][m] for m in means[BASE]}
        for metric in means[BASE]:
            log.info("%s: %.3f → %.3f", metric, means[BASE][metric], means[ALIGNED][metric])
    if by_style := _hps_benchmark(figures, image_set, context):
        summary["hps_benchmark"] = by_style
    return summary


def _hps_benchmark(
    figures: Mapping[str, Mapping[str, "Tensor"]], image_set: ImageSet, context: MetricContext
) -> dict[str, Any]:
    """Compute HPSv2's benchmark table of each model, from the first image of each prompt, if HPSv2 is used.

    The metric `reward` of a single reward is its score times its weight; the table is of the score.
    """
    rewards, seeds = rewards_by_name(context.reward_settings), image_set.seeds_per_prompt
    scorers = {**rewards, **context.scorer_settings}
    weights = {name: one.weight for name, one in rewards.items()}
    return {
        metric: {
            name: benchmark((own[metric][::seeds] / weights.get(metric, 1.0)).tolist(), image_set.styles)
            for name, own in figures.items()
        }
        for metric, settings in scorers.items()
        if settings.scorer == HPS and all(metric in own for own in figures.values())
    }
