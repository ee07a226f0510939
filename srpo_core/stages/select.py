"""Stage select: choose the best checkpoint on validation prompts, not the last one."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from math import isfinite
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
from srpo_core.errors import ArtifactError, DivergenceError
from srpo_core.generation.batches import GeneratedBatches, generate_batches
from srpo_core.generation.images import ImageSet
from srpo_core.generation.job import GenerationJob
from srpo_core.models.embeddings import read_embeddings
from srpo_core.scorers.metrics import MetricContext, check_metrics

BASE_STEP: Final = 0
ROUNDING: Final = 1e-9  # a mean that meets its margin exactly must not fail by its last bit

log = logging.getLogger(__name__)

Means = Mapping[str, float]
Figures = Mapping[str, Sequence[float]]  # by metric, one of every image in the set's order


@dataclass(frozen=True)
class Choice:
    """The chosen step, the steps within every margin, and the reason in one sentence."""

    step: int
    admissible: list[int]
    reason: str


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

    Writes runs/select/scores.parquet (one row per image: step, 0 being the base, prompt, style,
    seed, metrics) and runs/select/selection.json. An interrupted run generates only the missing images.

    Raises:
        ArtifactError: there is no checkpoint, or one is damaged.
        ConfigError: an unknown metric, or one that these settings do not allow.
        DivergenceError: an image or a figure is NaN or infinite.
    """
    torch.set_num_threads(resources.threads_per_worker)
    steps = _saved_steps()
    prompts, styles, condition = read_embeddings("validation")
    image_set = ImageSet("select", prompts, styles, condition, select.seeds_per_prompt, seed)
    metrics = sorted({select.maximize, *select.keep})
    context = MetricContext(rewards, select_judge, control_words)
    check_metrics(metrics, context, prompts, select.seeds_per_prompt)

    transformers = {BASE_STEP: None} | {step: artifacts.step_directory(step) for step in steps}
    batches: dict[int, GeneratedBatches] = {}
    figures: dict[int, Figures] = {}
    with ExitStack() as held:
        for step, transformer in transformers.items():
            job = GenerationJob(
                _name(step),
                model,
                transformer,
                image_set,
                generate,
                metrics,
                context,
                keep=transformer is None,
            )
            batches[step] = held.enter_context(closing(generate_batches(job, resources)))
            figures[step] = {name: values.tolist() for name, values in batches[step].figures().items()}
            log.info("%s: %s", _name(step), _summary(_means(figures[step])))
        _write(figures, image_set, select)
        for own in batches.values():
            own.discard()


def choose(means: Mapping[int, Means], select: SelectSettings) -> Choice:
    """Choose among the steps of `means`, where step 0 is the base.

    A step is admissible if its mean of every metric in `select.keep` lies at most that margin below
    the base's. The admissible step with the largest `select.maximize` is chosen, the earlier one
    on a tie. If none is admissible, the step whose worst breach is smallest is chosen for the report; the
    empty list `admissible` then makes the gate refuse it.
    """
    steps = sorted(step for step in means if step != BASE_STEP)
    _require_finite(means)
    slack = {step: _least_slack(means[step], means[BASE_STEP], select.keep) for step in steps}
    admissible = [step for step in steps if slack[step] >= -ROUNDING]
    if admissible:
        step = max(admissible, key=lambda step: means[step][select.maximize])
    else:
        step = max(steps, key=lambda step: (slack[step], means[step][select.maximize]))
    gain = _change(select.maximize, means[BASE_STEP], means[step])
    kept = "; ".join(
        f"{_change(name, means[BASE_STEP], means[step])}, where a change of {margin:+.3f} is allowed"
        for name, margin in sorted(select.keep.items())
    )
    if admissible:
        return Choice(
            step,
            admissible,
            f"step {step} has the best {select.maximize} of the {len(admissible)} of {len(steps)} checkpoints "
            f"that stay within every margin: {gain}" + (f" ({kept})" if kept else ""),
        )
    return Choice(
        step,
        [],
        f"all {len(steps)} checkpoints lose more than a margin of select.keep allows; step {step} "
        f"loses least and is shown instead: {gain} ({kept})",
    )


def _require_finite(means: Mapping[int, Means]) -> None:
    for step, figures in means.items():
        for name, value in figures.items():
            if not isfinite(value):
                raise DivergenceError(
                    f"{name} of {'the base' if step == BASE_STEP else f'step {step}'} is {value}: nothing can be "
                    "chosen by it; check the weights of reward and judge"
                )


def _least_slack(means: Means, base: Means, keep: Mapping[str, float]) -> float:
    return min((means[name] - base[name] - margin for name, margin in keep.items()), default=0.0)


def _change(metric: str, base: Means, means: Means) -> str:
    return f"{metric} {base[metric]:.3f} → {means[metric]:.3f}"


def _write(figures: Mapping[int, Figures], image_set: ImageSet, select: SelectSettings) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    means = {step: _means(own) for step, own in figures.items()}
    choice = choose(means, select)
    rows = [
        {"step": step, "prompt": image_set.prompts[index], "style": image_set.styles[index], "seed": k}
        | {name: values[row] for name, values in own.items()}
        for step, own in figures.items()
        for row, (index, k) in enumerate(image_set.places())
    ]
    with artifacts.replacing(artifacts.SELECT_SCORES) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
    selection = asdict(choice) | {
        "checkpoint": str(artifacts.step_directory(choice.step)),
        "curve": [{"step": step, **own} for step, own in means.items()],
        "maximize": select.maximize,
        "keep": dict(select.keep),
    }
    artifacts.write_json(artifacts.SELECTION, selection)
    log.info("%s", choice.reason)


def _means(figures: Figures) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in figures.items()}


def _saved_steps() -> list[int]:
    """List the steps of the checkpoints that training saved, ascending."""
    root = artifacts.require(artifacts.CHECKPOINTS)
    prefix = artifacts.STEP_PREFIX
    steps = sorted(int(path.name.removeprefix(prefix)) for path in root.glob(f"{prefix}*") if path.is_dir())
    if not steps:
        raise ArtifactError(f"{root} holds no checkpoint: run 'dvc repro --force train'")
    return steps


def _name(step: int) -> str:
    return "base" if step == BASE_STEP else f"step {step}"


def _summary(means: Means) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in means.items())
