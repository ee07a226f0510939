"""Split a rank's share of the global batch into micro-batches, as many on every rank.

Ranks of a sharded model wait for each other in every call, so a rank whose share is smaller than another's makes as
many calls. Draws stay keyed by the global sample index, and losses are divided by the global batch size, so the split
changes only rounding.
"""

from collections.abc import Iterator

from srpo_core.algorithm.method import TrainBatch
from srpo_core.config import TrainSettings


def largest_share(train: TrainSettings, world: int) -> int:
    """Return the number of images per step on the rank that has the most."""
    return -(-train.batch_size // world)


def num_micro_batches(train: TrainSettings, world: int) -> int:
    """Return the number of micro-batches into which each of `world` ranks splits its share."""
    share = largest_share(train, world)
    return -(-share // (train.micro_batch_size or share))


def images_per_call(train: TrainSettings, world: int) -> int:
    """Return the number of images of the largest micro-batch of any rank."""
    return -(-largest_share(train, world) // num_micro_batches(train, world))


def micro_batches(batch: TrainBatch, count: int) -> Iterator[tuple[TrainBatch, float]]:
    """Yield `count` parts of a rank's share in order, of equal size up to one image, with their weights.

    The weight is 1, or 0 for an image that is repeated because the share has fewer than `count` images.
    """
    if count == 1:
        yield batch, 1.0
        return
    size = len(batch.prompts)
    for number in range(count):
        start, stop = size * number // count, size * (number + 1) // count
        if start < stop:
            yield batch.part(start, stop), 1.0
        else:
            yield batch.part(0, 1), 0.0
