"""The steps of training after which something happens."""

from srpo_core.config import TrainSettings


def checkpoint_steps(train: TrainSettings) -> tuple[int, ...]:
    """Return the steps after which there is a checkpoint, ascending; the last step is always one of them."""
    return *range(train.checkpoint_every, train.steps, train.checkpoint_every), train.steps
