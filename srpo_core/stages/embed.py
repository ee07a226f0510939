"""Stage embed: text embeddings of the prompts that the run uses, and latents of real images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, groupby
from math import ceil
from typing import TYPE_CHECKING, Final

from srpo_core.config import REAL_SOURCES, EarlyStop, ModelSettings, ResourceSettings
from srpo_core.data.tables import Prompt, read_images, read_prompts, read_real_images
from srpo_core.errors import DataError
from srpo_core.models import encode_image_batches, encode_prompt_batches, latent_shape
from srpo_core.models.embeddings import ALARM, LATENTS, EmbeddingsFile, embeddings_file
from srpo_core.protocols import Condition
from srpo_core.randomness import keyed_order
from srpo_core.runtime.progress import reporting, with_progress
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
    train_rollout_cached_num_prompts: int | None,
    train_early_stop: EarlyStop | None,
    select_num_prompts: int,
    evaluate_num_prompts: int,
    resources: ResourceSettings,
) -> None:
    """Encode the prompts of each split and write runs/embed/<split>.safetensors.

    Training gets at most as many prompts as it has samples, and with `train.rollout.source: cached` at most
    `train.rollout.cached.num_prompts`; validation and test get as many as `select` and
    `evaluate` ask for. The split alarm has the validation prompts of early stop, in a file of its own, so that another
    `select.num_prompts` does not train again. If `train.rollout.source` is offline or hybrid,
    each training prompt comes with the latents of one real image.

    Raises:
        DataError: a training prompt has no preferred image.
        ConfigError: no GPU where the resources ask for one.
    """
    import torch

    device = local_device(resources)
    num_trained = train_steps * train_batch_size
    if train_rollout_source == "cached" and train_rollout_cached_num_prompts is not None:
        num_trained = min(num_trained, train_rollout_cached_num_prompts)
    watched = 0 if train_early_stop is None else train_early_stop.num_prompts
    chosen = {
        "train": choose_balanced(read_prompts("train"), num_trained, seed),
        "validation": choose_balanced(read_prompts("validation"), select_num_prompts, seed),
        ALARM: choose_balanced(read_prompts("validation"), watched, seed),
        "test": choose_balanced(read_prompts("test"), evaluate_num_prompts, seed),
    }
    texts = [prompt.text for prompts in chosen.values() for prompt in prompts]
    batches = encode_prompt_batches(model, texts, batch_size=resources.encode_batch_size, device=device)
    with reporting("load the text encoders"):
        first = next(batches)
    real = train_rollout_source in REAL_SOURCES
    with ExitStack() as opened:
        files, places = {}, []
        for split, prompts in chosen.items():
            latents = torch.empty(0, *latent_shape(model)) if real and split == "train" else None
            own = embeddings_file(
                split, [one.text for one in prompts], [one.style for one in prompts], first, latents
            )
            files[split] = opened.enter_context(own)
            places += [(split, row) for row in range(len(prompts))]
        total = ceil(len(texts) / resources.encode_batch_size)
        _write_prompts(files, places, chain([first], batches), total)
        if real:
            images = real_images(model, [prompt.text for prompt in chosen["train"]])
            encoded = encode_image_batches(model, images, device=device)
            total = ceil(len(chosen["train"]) / IMAGES_PER_BATCH)
            _write_latents(files["train"], with_progress(encoded, "encode images", total))


def _write_prompts(
    files: Mapping[str, EmbeddingsFile],
    places: Sequence[tuple[str, int]],
    batches: Iterable[Condition],
    total: int,
) -> None:
    """Write each row of the batches, in their order, to its place: (split, row)."""
    start = 0
    for batch in with_progress(batches, "encode batch", total):
        for split, rows in groupby(range(len(batch)), key=lambda row: places[start + row][0]):
            own = list(rows)
            part = batch[slice(own[0], own[-1] + 1)]
            files[split].write(places[start + own[0]][1], part.tensors)
        start += len(batch)


def _write_latents(file: EmbeddingsFile, batches: "Iterable[Tensor]") -> None:
    start = 0
    for latents in batches:
        file.write(start, {LATENTS: latents})
        start += len(latents)


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
    """Return the path of one image per training prompt: the preferred image of its first pair, or the image it describes."""
    known = read_real_images("train")
    if without := [prompt for prompt in prompts if prompt not in known]:
        raise DataError(
            f"runs/ingest has no preferred image of {without[0]!r} ({len(without)} of {len(prompts)} "
            "prompts have none): set train.rollout.source to online, or give every prompt a preference"
        )
    return [known[prompt] for prompt in prompts]


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
