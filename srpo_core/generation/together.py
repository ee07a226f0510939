"""Several parts of one image set, generated one after the other, measured as one set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srpo_core.generation.batches import GeneratedBatches
from srpo_core.scorers.metrics import finish


def figures_together(
    parts: Sequence[GeneratedBatches], base: Sequence[GeneratedBatches]
) -> dict[str, Tensor]:
    """Return by metric one figure for each image of all parts, (P,), as `GeneratedBatches.figures` does for one set.

    base: the base's images of the same parts.
    """
    job, first, prompts = parts[0].job, 0, []
    for part in parts:
        prompts += [first + index for index, _ in part.job.image_set.places()]
        first += len(part.job.image_set.prompts)
    found: dict[str, Tensor] = {}
    for name in job.metrics:  # one at a time, because some need much memory
        own, theirs = (torch.cat([part.measured(name) for part in some]) for some in (parts, base))
        found[name] = finish(name, own, job.context, base=theirs, prompts=torch.tensor(prompts))
    return found
