"""Rollouts: how many images a run generates to train on, while it trains or once in the stage `rollouts`."""

from srpo_core.algorithm.rollout import given_share
from srpo_core.config import TrainSettings


def num_prompts(train: TrainSettings) -> int:
    """Return the number of training prompts, if the data has as many as the settings can use."""
    samples = train.steps * train.batch_size
    limit = train.rollout.cached.num_prompts if train.rollout.source == "cached" else None
    return samples if limit is None else min(samples, limit)


def num_pairs(train: TrainSettings) -> int:
    """Return the number of pairs that the stage `rollouts` generates if no earlier run had them."""
    if train.rollout.source != "cached":
        return 0
    return num_prompts(train) * train.rollout.cached.images_per_prompt


def num_refreshed(train: TrainSettings) -> int:
    """Return the number of pairs, at most, that the trained model generates anew in all steps together."""
    every = train.rollout.cached.refresh_every
    if train.rollout.source != "cached" or not every:
        return 0
    blocks = (min(every, train.steps - start) for start in range(every, train.steps, every))
    return sum(min(steps * train.batch_size, num_pairs(train)) for steps in blocks)


def rolled_out_share(train: TrainSettings) -> float:
    """Return the number of images that are generated in training per image that is trained, on average over the steps."""
    return 1 - given_share(train.rollout) + num_refreshed(train) / (train.steps * train.batch_size)
