"""Generated batches on disk, and the figures of one image set or of several as one."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from srpo_core.generation.images import GeneratedImages, ImageSet
from srpo_core.generation.job import GenerationJob, file_name
from srpo_core.runtime.file_lock import FileLock
from srpo_core.scorers.metrics import finish

PIXELS: Final = "pixels"  # their name in a batch's file, beside the metrics


@dataclass(frozen=True)
class GeneratedBatches:
    """The images of a job on disk. `lock` keeps other runs from removing them until `close` or `discard`."""

    job: GenerationJob
    directory: Path
    lock: FileLock

    def __iter__(self) -> Iterator[tuple[ImageSet, GeneratedImages]]:
        """Iterate over the batches and their images, in the set's order, one at a time in memory."""
        from safetensors.torch import load_file

        for number in range(self.job.num_batches):
            tensors = load_file(self.directory / file_name(number))
            yield self.job.batch(number), GeneratedImages(tensors.pop(PIXELS), tensors)

    def figures(self) -> dict[str, Tensor]:
        """Return by metric one figure for each image of the set, (P,)."""
        return figures_together([self])

    def measured(self, metric: str) -> Tensor:
        """Return what `measure` found by one metric for all images, (P,) or (P, ...)."""
        from safetensors import safe_open

        parts = []
        for number in range(self.job.num_batches):
            with safe_open(self.directory / file_name(number), framework="pt") as file:
                parts.append(file.get_tensor(metric))
        return torch.cat(parts)

    def close(self) -> None:
        """Release the files. They stay for the same command, or for another run that reads them."""
        self.lock.release()

    def discard(self) -> None:
        """Release the files once the outputs are written; the last run that reads them removes them."""
        with self.lock:
            if self.lock.try_upgrade():
                shutil.rmtree(self.directory)
                self.lock.remove_file()


def figures_together(
    parts: Sequence[GeneratedBatches], base: Sequence[GeneratedBatches] = ()
) -> dict[str, Tensor]:
    """Return by metric one figure for each image of all parts, (P,), which are measured as one set.

    base: the base's images of the same parts, which some metrics compare with.
    """
    job, first, prompts = parts[0].job, 0, []
    for part in parts:
        prompts += [first + index for index, _ in part.job.image_set.places()]
        first += len(part.job.image_set.prompts)
    found: dict[str, Tensor] = {}
    for name in job.metrics:  # one at a time, because some need much memory
        own = torch.cat([part.measured(name) for part in parts])
        theirs = torch.cat([part.measured(name) for part in base]) if base else None
        found[name] = finish(name, own, job.context, base=theirs, prompts=torch.tensor(prompts))
    return found
