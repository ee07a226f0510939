"""The pairs of noise and image that the frozen base generates for training with cached rollouts.

A pair's file is named by a hash of all that determines it: the weights and the scheduler of the base, prompt and
embedding, seed and number of the image, the sampler, precision and code. Each call has `train.rollout.cached.batch_size` images, the
last one repeats some, so that a pair does not depend on those beside it. A killed run resumes from the files of its resume
directory, and later runs reuse those of `resources.kept_images_gb`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor

from srpo_core.algorithm.reference import noise_of
from srpo_core.algorithm.rollout import roll_out
from srpo_core.config import GenerateSettings, ModelSettings, ResourceSettings, RolloutSettings
from srpo_core.errors import DivergenceError
from srpo_core.generation.keys import CODE_OF_MODELS, computed_by, hash_condition, source_of, weights_of
from srpo_core.generation.pairs import pair_noise
from srpo_core.generation.tasks import generate_missing, missing_files
from srpo_core.models import LoadedBase
from srpo_core.models.precision import tf32
from srpo_core.protocols import BaseModel, Condition
from srpo_core.runtime.kept_files import KeptFiles, kept_files
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.shared_files import Location

LATENTS: Final = "latents"
# The code that determines a pair. tests/generation/test_rollouts.py compares it with the imports.
CODE_OF_PAIRS: Final = (
    "algorithm/arithmetic.py",
    "algorithm/direct_align.py",
    "algorithm/method.py",
    "algorithm/reference.py",
    "algorithm/rollout.py",
    "algorithm/schedule.py",
    "generation/pairs.py",
    "generation/rollouts.py",
    *CODE_OF_MODELS,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutJob:
    """Everything that determines the pairs of the training prompts; see `tasks.Job`.

    generate: their precision, and the number of images of a call; rollout: sampler, seed and number of the images; reference:
    as `train.reference`; device: that computes.
    """

    model: ModelSettings
    generate: GenerateSettings
    rollout: RolloutSettings
    reference: bool
    prompts: Sequence[str]
    condition: Condition
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable

    @property
    def name(self) -> str:
        """In messages."""
        return "rollouts"

    @property
    def transformer(self) -> Path | None:
        """None: the base's own weights."""
        return None

    @property
    def scorers(self) -> Sequence[Path]:
        """Nothing measures the pairs."""
        return ()

    @cached_property
    def file_names(self) -> Sequence[str]:
        """The name of each pair's file, by the number of the pair: the same wherever the base is stored."""
        sampler = self.rollout.model_dump(mode="json", exclude={"source", "share_offline", "cached"})
        settings = [
            [self.model.base, self.model.height, self.model.width],
            [self.generate.batch_size, self.generate.autocast, self.generate.tf32],
            [sampler, self.reference, self.rollout.cached.seed],
        ]
        weights = [line for line in weights_of(self.model) if not line.startswith("vae/")]
        source = source_of(weights, settings, CODE_OF_PAIRS)
        prompts = [self._digest_of_prompt(source, row) for row in range(len(self.prompts))]
        return [
            f"{hashlib.sha256(f'{prompt} {number}'.encode()).hexdigest()[:32]}.pair"
            for number in range(self.rollout.cached.images_per_prompt)
            for prompt in prompts
        ]

    def _digest_of_prompt(self, source: str, row: int) -> str:
        digest = hashlib.sha256(json.dumps([source, self.prompts[row]]).encode())
        hash_condition(digest, self.condition[slice(row, row + 1)])
        return digest.hexdigest()

    def kept_name(self, number: int) -> str:
        """Return the name of a pair among the files that later runs reuse: rounding depends on the device."""
        key = json.dumps([self.file_names[number], computed_by(self.device)])
        return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pair"

    def on(self, device: torch.device) -> Self:
        """Return the job for a device."""
        return replace(self, device=device)

    def with_transformer(self, directory: Path) -> Self:
        """Raise: the pairs are of the base's own weights."""
        raise AssertionError(f"the base generates the pairs, not {directory}")


def generate_pairs(job: RolloutJob, directory: Path, resources: ResourceSettings) -> None:
    """Generate the pairs that a directory lacks, in this process or in `resources.generate_workers` Ray tasks.

    The number of tasks does not change a pair.

    Raises:
        DivergenceError: the base generates NaN or infinity.
        ConfigError: the resources ask for a GPU, and neither this machine nor the cluster of RAY_ADDRESS has one.
        SrpoError: a task failed, or the cluster of RAY_ADDRESS does not answer.
    """
    directory.mkdir(exist_ok=True)
    if done := len(job.file_names) - len(missing_files(job, directory)):
        log.info("rollouts: %d of %d pairs are already generated", done, len(job.file_names))
    with closing(LoadedBase(job.model, job.generate, offload=resources.offload)) as loaded:
        generate_missing(job, directory, resources, loaded, make=make_pairs, kept=kept_files(resources))


def read_images(job: RolloutJob, directory: Path) -> Iterator[Tensor]:
    """Yield the latents (S, C) of all pairs in order, from their files."""
    from safetensors.torch import load_file

    for name in job.file_names:
        yield load_file(directory / name)[LATENTS]


def make_pairs(
    job: RolloutJob, place: Location, numbers: Sequence[int], loaded: LoadedBase, kept: KeptFiles | None
) -> None:
    """Write pairs, by their numbers; the base is loaded when one of them is not among the kept files."""
    from safetensors.torch import save

    missing = [number for number in numbers if not _reused(job, place, number, kept)]
    if reused := len(numbers) - len(missing):
        log.info("rollouts: %d of %d pairs are from an earlier run", reused, len(numbers))
    if not missing:
        return
    base, size = loaded.as_model(None, job.device), job.generate.batch_size
    for start in with_progress(range(0, len(missing), size), "generate rollouts"):
        some = missing[start : start + size]
        images = images_of(base, job, [*some, *[some[-1]] * (size - len(some))])[: len(some)].cpu()
        files = {
            number: save({LATENTS: image.contiguous()}) for number, image in zip(some, images, strict=True)
        }
        if kept is not None:
            kept.write({job.kept_name(number): data for number, data in files.items()})
        for number, data in files.items():
            (place / job.file_names[number]).write(data)


def images_of(base: BaseModel, job: RolloutJob, numbers: Sequence[int]) -> Tensor:
    """Generate the latents (B, S, C) of pairs in one call.

    Raises:
        DivergenceError: the base generates NaN or infinity.
    """
    rows = [number % len(job.prompts) for number in numbers]
    noise = [
        pair_noise(base.latent_shape, job.rollout.cached.seed, job.prompts[row], number // len(job.prompts))
        for row, number in zip(rows, numbers, strict=True)
    ]
    eps = noise_of(torch.stack(noise).to(job.device), job)
    with base.autocast(enabled=job.generate.autocast), tf32(enabled=job.generate.tf32):
        images = roll_out(base, eps, job.condition.batch(rows, job.device), job.rollout, job)
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    if not all(finite):
        raise DivergenceError(
            f"rollouts: the base generates NaN or infinity for prompt {job.prompts[rows[finite.index(False)]]!r}: check its "
            "weights, or set train.compute.autocast to false"
        )
    return images


def _reused(job: RolloutJob, place: Location, number: int, kept: KeptFiles | None) -> bool:
    """Copy a pair from the kept files, if it is one of them."""
    data = None if kept is None else kept.read(job.kept_name(number))
    if data is None:
        return False
    (place / job.file_names[number]).write(data)
    return True
