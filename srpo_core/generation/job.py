"""What one model is to generate, and what determines it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import torch

import srpo_core
from srpo_core.config import GenerateSettings, ModelSettings
from srpo_core.generation.images import ImageSet
from srpo_core.generation.keys import weights_of
from srpo_core.runtime.digests import known_digest
from srpo_core.scorers.metrics import MetricContext

DIGITS: Final = 16


@dataclass(frozen=True)
class GenerationJob:
    """Everything that determines the images of one model and their figures.

    name: of the model; transformer: directory of its weights, None for the base's own; keep: whether later runs can reuse
    its images (`srpo_core/generation/kept_images.py`).
    """

    name: str
    model: ModelSettings
    transformer: Path | None
    image_set: ImageSet
    generate: GenerateSettings
    metrics: Sequence[str]
    context: MetricContext
    keep: bool = False

    @property
    def num_batches(self) -> int:
        """Number of batches of the image set."""
        return -(-len(self.image_set.prompts) // self._prompts_per_batch)

    def batch(self, number: int) -> ImageSet:
        """The part of the image set that one batch generates."""
        start = number * self._prompts_per_batch
        return self.image_set.part(start, start + self._prompts_per_batch)

    @property
    def file_names(self) -> Sequence[str]:
        """The name of each batch's file."""
        return [file_name(number) for number in range(self.num_batches)]

    @property
    def scorers(self) -> Sequence[Path]:
        """Directories of the scorers."""
        return [Path(one.path) for one in self.context.all_settings.values()]

    def on(self, device: torch.device) -> Self:
        """Return the job for a device, without the real images, which are compared with at the end, in the stage's process."""
        return replace(self, context=replace(self.context, real=None, training=None, device=device))

    def with_transformer(self, directory: Path) -> Self:
        """Return the job with the model's weights in another directory."""
        return replace(self, transformer=directory)

    @property
    def _prompts_per_batch(self) -> int:
        return max(1, self.generate.batch_size // self.image_set.seeds_per_prompt)


def fingerprint(job: GenerationJob) -> str:
    """Hash a job's settings, prompts, embeddings and the weights that it loads, and the code of this package."""
    image_set, context = job.image_set, job.context
    scorers = context.all_settings
    parts = [
        job.name,
        job.model.model_dump(mode="json"),
        job.generate.model_dump(mode="json"),
        list(job.metrics),
        context.control_words.model_dump(mode="json"),
        {name: one.model_dump(mode="json") for name, one in scorers.items()},
        [image_set.purpose, list(image_set.prompts), image_set.seeds_per_prompt, image_set.seed],
    ]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for name, tensor in sorted(image_set.condition.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    for line in weights_of(job.model, job.transformer):
        digest.update(line.encode())
    for root in (*(Path(one.path) for one in scorers.values()), Path(srpo_core.__file__).parent):
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(root)} {known_digest(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


def file_name(number: int) -> str:
    """Return the name of a batch's file."""
    return f"{number:05d}.safetensors"
