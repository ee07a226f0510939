"""Pairs of noise and image on disk: the output of stage rollouts, from which training with cached rollouts starts.

An image is stored as packed latents. Its noise is not stored, because it is keyed by seed, prompt and number of the image.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

import torch
from torch import Tensor

from srpo_core.artifacts import EMBEDDINGS, ROLLOUTS, read_json, replacing, require, write_json
from srpo_core.errors import ArtifactError
from srpo_core.randomness import keyed_noise

INDEX: Final = ROLLOUTS / "pairs.json"
IMAGES: Final = "latents"
NUMBERS: Final = "noise_numbers"
SHARD_BYTES: Final = 2**28
_REMEDY: Final = "run 'dvc repro --force -s rollouts'"


@dataclass(frozen=True)
class Pairs:
    """The pairs of all training prompts. Pair `number` of the prompt in row r is at number * num_prompts + r.

    seed: of the noise; shards: latents (P, S, C) of all pairs in order, mapped from their files, each shard but the last with
    as many pairs; newer: images that replace those of the files, by row and number.
    """

    seed: int
    num_prompts: int
    images_per_prompt: int
    shards: Sequence[Tensor]
    newer: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)

    def image(self, row: int, number: int) -> Tensor:
        """Return the latents (S, C) of a pair on the CPU."""
        if (found := self.newer.get((row, number))) is not None:
            return found
        shard, place = divmod(number * self.num_prompts + row, len(self.shards[0]))
        return self.shards[shard][place]

    def number(self, epoch: int) -> int:
        """Return the number of the pair that each prompt uses in an epoch, counted from 0."""
        return epoch % self.images_per_prompt


def pair_noise(shape: tuple[int, int], seed: int, prompt: str, number: int) -> Tensor:
    """Return the noise (S, C) of a pair, float32 on the CPU. It depends neither on other prompts nor on the run's seed."""
    return keyed_noise(shape, seed, "rollout", prompt, number)


def write_pairs(
    images: Iterable[Tensor], prompts: Sequence[str], *, seed: int, images_per_prompt: int
) -> None:
    """Write the latents (S, C) of all pairs, in order, below runs/rollouts; only those of one shard are in memory.

    The index is written last.
    """
    from safetensors.torch import save

    waiting = iter(images)
    first = next(waiting)
    waiting, per_shard = chain([first], waiting), max(1, SHARD_BYTES // first.nbytes)
    shards: list[str] = []
    count = 0
    while some := list(islice(waiting, per_shard)):
        numbers = torch.arange(count, count + len(some)) // len(prompts)
        shards.append(f"pairs-{len(shards):05d}.safetensors")
        count += len(some)
        with replacing(ROLLOUTS / shards[-1]) as partial:
            # not with save_file, which lets only this user read the file
            partial.write_bytes(save({IMAGES: torch.stack(some), NUMBERS: numbers}))
    assert count == len(prompts) * images_per_prompt, f"{count} images"
    write_json(
        INDEX,
        {
            "num_pairs": count,
            "num_prompts": len(prompts),
            "images_per_prompt": images_per_prompt,
            "seed": seed,
            "prompts": _digest(prompts),
            "shards": shards,
        },
    )


def write_no_pairs() -> None:
    """Write the output of a run whose training starts from no cached image."""
    write_json(INDEX, {"num_pairs": 0})


def read_pairs(prompts: Sequence[str]) -> Pairs:
    """Read the pairs of the training prompts. The images are mapped from the files: a row is read when it is used.

    Raises:
        ArtifactError: a file is missing or damaged, or the pairs are of other prompts.
    """
    index = read_json(INDEX)
    if not index["num_pairs"]:
        raise ArtifactError(f"{INDEX} has no pairs, which train.rollout.source cached needs: {_REMEDY}")
    if index["prompts"] != _digest(prompts):
        raise ArtifactError(
            f"{INDEX} has pairs of other prompts than {EMBEDDINGS / 'train.safetensors'}: {_REMEDY}"
        )
    shards = [_read_shard(name) for name in index["shards"]]
    if sum(map(len, shards)) != index["num_pairs"]:
        raise ArtifactError(
            f"{INDEX} names {index['num_pairs']} pairs, but its shards have others: {_REMEDY}"
        )
    return Pairs(index["seed"], index["num_prompts"], index["images_per_prompt"], shards)


def _read_shard(name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    path = require(ROLLOUTS / name)
    try:
        with safe_open(path, framework="pt") as file:
            images: Tensor = file.get_tensor(IMAGES)
            return images
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {_REMEDY}") from error


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
