"""The prompts that are held out: for selecting a checkpoint, and for tests if the data have no split for them."""

import hashlib
from collections.abc import Collection

from srpo_core.errors import DataError
from srpo_core.prompts import normal_form


def held_out_prompts(prompts: Collection[str], share: float, seed: int) -> frozenset[str]:
    """Choose about `share` of `prompts` for validation, at least one if `share` is not 0.

    The choice depends only on a hash of the prompt and the seed, so that adding other prompts later does not move a
    prompt between training and validation. Spellings of one prompt (`normal_form`) are held out together.

    Raises:
        DataError: no prompt would be left to train on.
    """
    spellings: dict[str, list[str]] = {}
    for prompt in prompts:
        spellings.setdefault(normal_form(prompt), []).append(prompt)
    place = {prompt: _place(min(same), seed) for same in spellings.values() for prompt in same}
    chosen = {prompt for prompt in prompts if place[prompt] < share}
    if share > 0 and not chosen and prompts:
        least = min(place.values())
        chosen = {prompt for prompt in prompts if place[prompt] == least}
    if len(chosen) == len(prompts):
        raise DataError(
            f"validation_share {share} holds out all {len(prompts)} prompts of train.json and leaves none "
            "to train on: lower ingest.validation_share or add prompts"
        )
    return frozenset(chosen)


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a prompt is in the part `share` of all prompts that a data set without a test split holds out for tests.

    It depends on nothing but the prompt, apart from its spelling (`normal_form`), and not on what is held out for
    validation.
    """
    return _place(normal_form(prompt), "test") < share


def _place(prompt: str, seed: int | str) -> float:
    """Map prompt and seed, or purpose, to a number in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
