"""What `select` and `evaluate` read from the disk for one model after the other."""

from collections.abc import Iterator
from typing import Final

from srpo_core.gates.spending import stage_sizes
from srpo_core.plan.case import Case
from srpo_core.plan.images import num_models
from srpo_core.plan.memory import scorers_of
from srpo_core.selection.halving import round_sizes

BASE: Final = 0  # its number; models have numbers in the order in which a round generates with them


def bytes_loaded(case: Case, stage: str) -> float:
    """Count the bytes that the process of a stage reads, or each of its Ray tasks, if no round or stage ends it early.

    Each model of each round loads the scorers. In the stage's process the base stays in memory: adapters are put on it, and
    other weights are read into its tensors. A task ends with its model, so the next one loads everything again.
    """
    in_tasks = case.settings.resources.generate_workers > 1
    scorers = scorers_of(case.settings)[stage] * case.scorer
    total, before = 0.0, None
    for model in _models(case, stage):
        total += scorers
        if in_tasks or before is None:
            total += 2 * case.sizes.vae + _weights(case, model)
        elif model != before:
            total += _weights(case, model, on_base=True)
        before = model
    return total


def bytes_of_checkpoint(case: Case) -> float:
    """Count the bytes of an exported checkpoint: adapters, or all weights."""
    return 4.0 * (case.sizes.trained if case.settings.train.tune == "lora" else case.base)


def _models(case: Case, stage: str) -> Iterator[int]:
    """Yield the number of each model in the order in which a stage uses them, once for each round."""
    settings, models = case.settings, range(num_models(case)[stage])
    if stage == "select":
        for _ in round_sizes(settings.select.num_prompts, settings.select.halving):
            yield from models
        return
    sizes = stage_sizes(settings.evaluate.num_prompts, settings.evaluate.stages)
    for number in range(len(sizes)):
        yield from models[:: -1 if number % 2 else 1]  # begins with the model that is in memory


def _weights(case: Case, model: int, *, on_base: bool = False) -> float:
    """Count the bytes of a model's weights; on_base: a base is in memory, on which adapters are put."""
    lora = case.settings.train.tune == "lora"
    base = 0 if lora and on_base else 2 * case.base
    if model == BASE:
        return base
    return bytes_of_checkpoint(case) + (base if lora else 0)
