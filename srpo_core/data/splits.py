"""The prompts that are held out for selecting a checkpoint."""

import hashlib
from collections.abc import Collection

from srpo_core.errors import DataError


def held_out_prompts(prompts: Collection[str], share: float, seed: int) -> frozenset[str]:
    """Choose about `share` of `prompts` for validation, at least one if `share` is not 0.

    The choice depends only on a hash of the prompt and the seed, so that adding prompts later does not move other
    prompts between training and validation.

    Raises:
        DataError: no prompt would be left to train on.
    """
    place = {prompt: _place(prompt, seed) for prompt in prompts}
    chosen = {prompt for prompt in prompts if place[prompt] < share}
    if share > 0 and not chosen and prompts:
        chosen = {min(prompts, key=lambda prompt: place[prompt])}
    if len(chosen) == len(prompts):
        raise DataError(
            f"validation_share {share} holds out all {len(prompts)} prompts of train.json and leaves none "
            "to train on: lower ingest.validation_share or add prompts"
        )
    return frozenset(chosen)


def _place(prompt: str, seed: int) -> float:
    """Map prompt and seed to a number in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
