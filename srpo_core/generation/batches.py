"""Images generated in batches: by several Ray tasks at once, and kept on disk, so that a killed run resumes.

A batch is as many prompts of an image set as `generate.batch_size` holds, by one model. Its file is outside the
stage's outputs, in a directory named by a hash of everything that determines its content. The directory is removed
when the outputs are written and no other run of this machine reads it. Tasks on other machines exchange files with
the run through SRPO_SHARED.
"""

import gc
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

import srpo_core
from srpo_core.artifacts import home
from srpo_core.config import GenerateSettings, ModelSettings, ResourceSettings
from srpo_core.errors import SrpoError
from srpo_core.generation.images import GeneratedImages, ImageSet, generate_set
from srpo_core.models import files_to_load, load_base
from srpo_core.runtime import file_lock
from srpo_core.runtime.digests import known_digest
from srpo_core.runtime.file_lock import FileLock
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.ray_cluster import local_device, ray_for, require_cluster
from srpo_core.runtime.shared_files import COMPLETE, Location, by_name, local_copy, share, storage
from srpo_core.scorers.metrics import MetricContext, finish

PIXELS: Final = "pixels"
DIGITS: Final = 16
TRANSFORMER: Final = "transformer_to_generate_with"  # its name where tasks of other machines find it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationJob:
    """Everything that determines the images of one model and their figures.

    name: of the model; transformer: directory of its weights, None for the base's own.
    """

    name: str
    model: ModelSettings
    transformer: Path | None
    image_set: ImageSet
    generate: GenerateSettings
    metrics: Sequence[str]
    context: MetricContext

    @property
    def num_batches(self) -> int:
        """Number of batches of the image set."""
        return -(-len(self.image_set.prompts) // self._prompts_per_batch)

    def batch(self, number: int) -> ImageSet:
        """The part of the image set that one batch generates."""
        start = number * self._prompts_per_batch
        return self.image_set.part(start, start + self._prompts_per_batch)

    @property
    def _prompts_per_batch(self) -> int:
        return max(1, self.generate.batch_size // self.image_set.seeds_per_prompt)


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
            tensors = load_file(self.directory / _file_name(number))
            yield self.job.batch(number), GeneratedImages(tensors.pop(PIXELS), tensors)

    def figures(self, base: "GeneratedBatches | None" = None) -> dict[str, Tensor]:
        """Return by metric one figure for each image of the set, (P,).

        base: the base's images of the same set, which some metrics compare with.
        """
        prompts = torch.tensor([index for index, _ in self.job.image_set.places()])
        found: dict[str, Tensor] = {}
        for name in self.job.metrics:  # one at a time, because some need much memory
            theirs = None if base is None else base.measured(name)
            found[name] = finish(name, self.measured(name), self.job.context, base=theirs, prompts=prompts)
        return found

    def measured(self, metric: str) -> Tensor:
        """Return what `measure` found by one metric for all images, (P,) or (P, ...)."""
        from safetensors import safe_open

        parts = []
        for number in range(self.job.num_batches):
            with safe_open(self.directory / _file_name(number), framework="pt") as file:
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


def generate_batches(job: GenerationJob, resources: ResourceSettings) -> GeneratedBatches:
    """Generate and measure the batches that are missing, in this process or in `resources.generate_workers` Ray tasks.

    The number of tasks changes neither images nor figures.

    Raises:
        DivergenceError: the model generates NaN or infinity.
        ConfigError: the resources ask for a GPU, and neither this machine nor the cluster of RAY_ADDRESS has one.
        SrpoError: a task failed, or the cluster of RAY_ADDRESS does not answer.
    """
    directory = home() / "resume" / f"generate-{fingerprint(job)}"
    lock = file_lock.acquire(directory.with_suffix(".lock"), shared=True)
    try:
        directory.mkdir(exist_ok=True)
        _generate_missing(job, directory, resources)
    except BaseException:
        lock.release()
        raise
    return GeneratedBatches(job, directory, lock)


def _generate_missing(job: GenerationJob, directory: Path, resources: ResourceSettings) -> None:
    missing = _missing(job, directory)
    if len(missing) < job.num_batches:
        done = job.num_batches - len(missing)
        log.info("%s: %d of %d batches are already generated", job.name, done, job.num_batches)
    only_cluster_has_gpu = resources.use_gpu and not torch.cuda.is_available()
    here = resources.generate_workers == 1 or not missing or (len(missing) == 1 and not only_cluster_has_gpu)
    if here or "RAY_ADDRESS" not in os.environ:  # a local Ray would wait forever for a missing GPU
        device = local_device(resources)
    else:
        device = torch.device("cuda" if resources.use_gpu else "cpu")
    # real images are compared with at the end, in this process
    without_real = replace(job, context=replace(job.context, real=None, training=None, device=device))
    if here:
        _generate_some(without_real, Location.of(directory), missing)
    else:
        _generate_on_ray(without_real, directory, resources)


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
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    for file in files_to_load(job.model, job.transformer):
        digest.update(f"{file.parent.name}/{file.name} {known_digest(file)}\n".encode())
    for root in (*(Path(one.path) for one in scorers.values()), Path(srpo_core.__file__).parent):
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(root)} {known_digest(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _generate_some(job: GenerationJob, place: Location, numbers: Sequence[int]) -> None:
    from safetensors.torch import save

    if not numbers:
        return
    base = load_base(job.model, job.transformer).to(job.context.device)
    for number in with_progress(numbers, f"generate {job.name}"):
        generated = generate_set(
            base, job.name, job.batch(number), generate=job.generate, metrics=job.metrics, context=job.context
        )
        tensors = {
            PIXELS: generated.pixels,
            **{name: values.contiguous() for name, values in generated.measured.items()},
        }
        (place / _file_name(number)).write(save(tensors))
    del base
    gc.collect()  # diffusers' hooks keep the module in a reference cycle, and the next model needs its memory


@dataclass(frozen=True)
class _Exchange:
    """Where tasks on any machine read inputs, the digests of inputs that they must fetch, and where they write batches."""

    inputs: Location
    digests: Mapping[str, str]
    results: Location


@contextmanager
def _exchange(job: GenerationJob, directory: Path) -> Iterator[tuple[GenerationJob, _Exchange]]:
    """Yield the job with paths that tasks can read, and the exchange: on this disk, or below SRPO_SHARED."""
    shared = storage()
    if shared is None:
        yield job, _Exchange(Location.of(Path.cwd()), {}, Location.of(directory))
        return
    inputs, results = (shared / name / directory.name for name in ("inputs", "generated"))
    _collect(job, results, directory)  # batches of a run that was killed before it fetched them
    context = job.context
    weights = files_to_load(job.model, job.transformer)
    files = {}
    if job.transformer is not None:  # may be anywhere on this machine
        own = [file for file in weights if file.is_relative_to(job.transformer)]
        weights = [file for file in weights if file not in own]
        files = {f"{TRANSFORMER}/{file.relative_to(job.transformer)}": file for file in own}
        job = replace(job, transformer=Path(TRANSFORMER))
    files |= by_name([*weights, *(Path(one.path) for one in context.all_settings.values())])
    yield job, _Exchange(inputs, share(files, inputs), results)
    _collect(job, results, directory)
    for place in (inputs / COMPLETE, inputs, results):
        place.delete()


def _collect(job: GenerationJob, results: Location, directory: Path) -> None:
    for number in _missing(job, directory):
        if (batch := results / _file_name(number)).exists():
            batch.download(directory / _file_name(number))


def _generate_on_ray(job: GenerationJob, directory: Path, resources: ResourceSettings) -> None:
    """Distribute the missing batches over tasks that load the model once each; raise the first error of any task."""
    import ray

    require_cluster()
    try:
        with (
            ray_for(
                resources.generate_workers,
                least=1,
                use_gpu=resources.use_gpu,
                threads=resources.threads_per_worker,
            ) as cpus,
            _exchange(job, directory) as (shared_job, exchange),
        ):
            numbers = _missing(job, directory)
            # set here, not with `options`: otherwise the task's process would outlive it and keep its GPU
            task = ray.remote(
                num_cpus=cpus, num_gpus=int(resources.use_gpu), max_retries=0, scheduling_strategy="SPREAD"
            )(_generate_in_task)
            shared = ray.put(shared_job)
            shares = [
                numbers[first :: resources.generate_workers] for first in range(resources.generate_workers)
            ]
            waiting = [
                task.remote(shared, exchange, some, resources.threads_per_worker) for some in shares if some
            ]
            for _ in with_progress(range(len(waiting)), f"generate {job.name}"):
                done, waiting = ray.wait(waiting)
                ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SrpoError):
            raise cause from error
        line = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        raise SrpoError(f"generating images of {job.name} failed: {line}") from error
    except ray.exceptions.RayError as error:
        line = " ".join(str(error).split())[:300]
        raise SrpoError(
            f"generating images of {job.name} was interrupted: {line}; run the same command again to resume"
        ) from error


def _generate_in_task(job: GenerationJob, exchange: _Exchange, numbers: Sequence[int], threads: int) -> None:
    torch.set_num_threads(threads)
    with local_copy(exchange.inputs, exchange.digests) as inputs:
        here = Path.cwd()
        os.chdir(inputs)  # Ray starts workers in another directory
        try:
            _generate_some(job, exchange.results, numbers)
        finally:
            os.chdir(here)


def _missing(job: GenerationJob, directory: Path) -> list[int]:
    return [number for number in range(job.num_batches) if not (directory / _file_name(number)).exists()]


def _file_name(number: int) -> str:
    return f"{number:05d}.safetensors"
