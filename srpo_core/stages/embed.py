"""Stage embed: text embeddings, only of the prompts that the run will draw."""

from collections.abc import Sequence

from srpo_core.algorithm.noise import keyed_order
from srpo_core.config import EvaluateSettings, ModelSettings, SelectSettings, TrainSettings
from srpo_core.data.tables import Prompt, read_prompts
from srpo_core.models import encode_prompts
from srpo_core.models.embeddings import write_embeddings

BATCH = 64


def run(
    *,
    seed: int,
    model: ModelSettings,
    train: TrainSettings,
    select: SelectSettings,
    evaluate: EvaluateSettings,
) -> None:
    """Encode the prompts of each split and write runs/embed/<split>.safetensors.

    Training gets at most as many prompts as it draws pictures; validation and test as many as
    select and evaluate ask for.
    """
    counts = {
        "train": train.steps * train.batch_size,
        "validation": select.num_prompts,
        "test": evaluate.num_prompts,
    }
    chosen = {split: spread(read_prompts(split), count, seed) for split, count in counts.items()}
    texts = [prompt.text for prompts in chosen.values() for prompt in prompts]
    condition = encode_prompts(model, texts, batch_size=BATCH)
    start = 0
    for split, prompts in chosen.items():
        rows = slice(start, start + len(prompts))
        write_embeddings(split, texts[rows], [prompt.style for prompt in prompts], condition[rows])
        start = rows.stop


def spread(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """Choose `count` prompts (all, if fewer), the same number of each style as far as they reach.

    The choice is random but fixed by the seed; the order is that of the data.
    """
    order = keyed_order(len(prompts), seed, "prompts")
    rank: dict[str, int] = {}
    keys = {}
    for index in order:
        style = prompts[index].style
        keys[index] = rank[style] = rank.get(style, -1) + 1
    chosen = sorted(sorted(order, key=keys.__getitem__)[:count])
    return [prompts[index] for index in chosen]
