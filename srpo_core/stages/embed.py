"""Stage embed: text embeddings of the prompts that the run uses, and latents of real images."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from srpo_core.config import EarlyStop, ModelSettings, ResourceSettings
from srpo_core.data.tables import Prompt, read_images, read_pairs, read_prompts
from srpo_core.errors import DataError
from srpo_core.models import encode_images, encode_prompts
from srpo_core.models.embeddings import ALARM, write_embeddings
from srpo_core.randomness import keyed_order
from srpo_core.runtime.ray_cluster import local_device

if TYPE_CHECKING:
    from torch import Tensor

IMAGES_PER_BATCH: Final = 8  # a VAE needs more memory for an image than a text encoder for a prompt


def run(  # noqa: PLR0913  # the settings that DVC tracks
    *,
    seed: int,
    model: ModelSettings,
    train_steps: int,
    train_batch_size: int,
    train_rollout_source: str,
    train_early_stop: EarlyStop | None,
    select_num_prompts: int,
    evaluate_num_prompts: int,
    resources: ResourceSettings,
) -> None:
    """Encode the prompts of each split and write runs/embed/<split>.safetensors.

    Training gets at most as many prompts as it generates images; validation and test get as many as `select` and
    `evaluate` ask for. The split alarm has the validation prompts of early stop, in a file of its own, so that another
    `select.num_prompts` does not train again. If `train.rollout.source` is not online, each training prompt comes with the latents of one
    real image.

    Raises:
        DataError: a training prompt has no preferred image.
        ConfigError: no GPU where the resources ask for one.
    """
    device = local_device(resources)
    watched = 0 if train_early_stop is None else train_early_stop.num_prompts
    chosen = {
        "train": choose_balanced(read_prompts("train"), train_steps * train_batch_size, seed),
        "validation": choose_balanced(read_prompts("validation"), select_num_prompts, seed),
        ALARM: choose_balanced(read_prompts("validation"), watched, seed),
        "test": choose_balanced(read_prompts("test"), evaluate_num_prompts, seed),
    }
    texts = [prompt.text for prompts in chosen.values() for prompt in prompts]
    condition = encode_prompts(model, texts, batch_size=resources.encode_batch_size, device=device)
    start = 0
    for split, prompts in chosen.items():
        rows = slice(start, start + len(prompts))
        real = split == "train" and train_rollout_source != "online"
        batches = real_images(model, texts[rows]) if real else None
        latents = None if batches is None else encode_images(model, batches, device=device)
        write_embeddings(split, texts[rows], [prompt.style for prompt in prompts], condition[rows], latents)
        start = rows.stop


def real_images(model: ModelSettings, prompts: Sequence[str]) -> "Iterator[Tensor]":
    """Yield the preferred image of each training prompt, in batches (B, 3, H, W) in [0, 1], cropped to the model's size."""
    import torch
    from PIL import ImageOps
    from PIL.Image import Resampling
    from torchvision.transforms.functional import to_tensor

    paths = preferred_images(prompts)
    for start in range(0, len(paths), IMAGES_PER_BATCH):
        some = paths[start : start + IMAGES_PER_BATCH]
        images = read_images(some)
        fitted = [
            ImageOps.fit(images[path], (model.width, model.height), Resampling.BICUBIC) for path in some
        ]
        yield torch.stack([to_tensor(image) for image in fitted])


def preferred_images(prompts: Sequence[str]) -> list[str]:
    """Return the path of one image per training prompt: the preferred image of its first pair."""
    preferred: dict[str, str] = {}
    for pair in read_pairs("train"):
        preferred.setdefault(pair.prompt, pair.preferred)
    if without := [prompt for prompt in prompts if prompt not in preferred]:
        raise DataError(
            f"runs/ingest/pairs.parquet has no preferred image of {without[0]!r} ({len(without)} of {len(prompts)} "
            "prompts have none): set train.rollout.source to online, or give every prompt a preference"
        )
    return [preferred[prompt] for prompt in prompts]


def choose_balanced(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """Choose `count` prompts (all, if fewer), balanced over styles as far as each has enough.

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
