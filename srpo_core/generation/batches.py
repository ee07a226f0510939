"""Images drawn in shards: by several Ray tasks at once, and kept, so that a killed run draws none twice.

A shard is some prompts of a set, as many as fill a batch, by one model. Its file lies outside the stage's
outputs, below a name that hashes all that decides its content, and goes when the outputs are written and no other
run of this machine reads it. Tasks on other machines meet this one below SRPO_SHARED.
"""

import fcntl
import gc
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

import srpo_core
from srpo_core.artifacts import home, sha256
from srpo_core.config import GenerateSettings, ModelSettings, ResourceSettings
from srpo_core.errors import SrpoError
from srpo_core.generation.images import GeneratedImages, ImageSet, generate_set
from srpo_core.models import load_base
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.ray_cluster import local_device, ray_for, require_cluster
from srpo_core.runtime.shared_files import COMPLETE, Location, by_name, local_copy, share, storage
from srpo_core.scorers.metrics import MetricContext, finish

PIXELS: Final = "pixels"
DIGITS: Final = 16
TRANSFORMER: Final = "drawn_transformer"  # what it is called where tasks of other machines find it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationJob:
    """All that decides the images of one model and their figures.

    name: what the model is called; transformer: directory of its weights, None for the base's own.
    """

    name: str
    model: ModelSettings
    transformer: Path | None
    image_set: ImageSet
    generate: GenerateSettings
    metrics: Sequence[str]
    context: MetricContext

    @property
    def num_shards(self) -> int:
        """How many shards the set makes."""
        return -(-len(self.image_set.prompts) // self._prompts_at_once)

    def shard(self, number: int) -> ImageSet:
        """The images of one shard."""
        start = number * self._prompts_at_once
        return self.image_set.part(start, start + self._prompts_at_once)

    @property
    def _prompts_at_once(self) -> int:
        return max(1, self.generate.batch_size // self.image_set.seeds_per_prompt)


@dataclass(frozen=True)
class Shards:
    """The images of a job on disk, which stay there while `lock` holds them: until `close` or `discard`."""

    job: GenerationJob
    directory: Path
    lock: IO[bytes]

    def __iter__(self) -> Iterator[tuple[ImageSet, GeneratedImages]]:
        """Each shard with its images, in the set's order, one at a time in memory."""
        from safetensors.torch import load_file

        for number in range(self.job.num_shards):
            tensors = load_file(self.directory / _name(number))
            yield self.job.shard(number), GeneratedImages(tensors.pop(PIXELS), tensors)

    def figures(self) -> dict[str, Tensor]:
        """By metric, one figure for every image of the set, (P,)."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.job.metrics}
        for _, generated in self:
            for name, values in found.items():
                values.append(generated.found[name])
        return {name: finish(name, torch.cat(values), self.job.context) for name, values in found.items()}

    def close(self) -> None:
        """Let go of the files; they stay for the same command, or for another run that reads them."""
        self.lock.close()

    def discard(self) -> None:
        """Let go of the files, once what was made of them is safe; the last run that reads them removes them."""
        with self.lock, suppress(BlockingIOError):
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.directory)
            _lock_file(self.directory).unlink()


def generate_batches(job: GenerationJob, resources: ResourceSettings) -> Shards:
    """Draw and measure what is not there yet, in this process or by `resources.generate_workers` Ray tasks.

    The number of tasks changes neither images nor figures.

    Raises:
        DivergenceError: the model draws something that is not a finite number.
        ConfigError: the resources ask for a GPU, and neither this machine nor a cluster of RAY_ADDRESS has one.
        SrpoError: a task failed, or the cluster of RAY_ADDRESS does not answer.
    """
    directory = home() / "resume" / f"draw-{fingerprint(job)}"
    lock = _hold(directory)
    try:
        directory.mkdir(exist_ok=True)
        _generate_missing(job, directory, resources)
    except BaseException:
        lock.close()
        raise
    return Shards(job, directory, lock)


def _generate_missing(job: GenerationJob, directory: Path, resources: ResourceSettings) -> None:
    missing = _missing(job, directory)
    if len(missing) < job.num_shards:
        log.info(
            "%s: %d of %d parts are drawn already", job.name, job.num_shards - len(missing), job.num_shards
        )
    # of this machine: the cluster's may have one
    no_gpu = resources.use_gpu and not torch.cuda.is_available()
    here = resources.generate_workers == 1 or not missing or (len(missing) == 1 and not no_gpu)
    if here or "RAY_ADDRESS" not in os.environ:  # a Ray of our own would wait for a GPU for ever
        device = local_device(resources)
    else:
        device = torch.device("cuda" if resources.use_gpu else "cpu")
    # real images are compared with at the end, here
    generated = replace(job, context=replace(job.context, real=None, device=device))
    if here:
        _generate_some(generated, Location.of(directory), missing)
    else:
        _generate_on_ray(generated, directory, resources)


def _lock_file(directory: Path) -> Path:
    return directory.with_suffix(".lock")


def _hold(directory: Path) -> IO[bytes]:
    """Keep other runs from removing a directory of shards while the file that is returned is open."""
    path = _lock_file(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("ab")
        fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the last reader removed it before it was ours


def fingerprint(job: GenerationJob) -> str:
    """A hash of a job's settings, prompts, embeddings, weights and of this package's code."""
    image_set, context = job.image_set, job.context
    scorers = {"reward": context.reward_settings, "judge": context.judge_settings, **context.scorer_settings}
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
    roots = [
        Path(job.model.path),
        *(Path(one.path) for one in scorers.values()),
        Path(srpo_core.__file__).parent,
    ]
    for root in [*roots, *([job.transformer] if job.transformer else [])]:
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(root)} {sha256(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _generate_some(job: GenerationJob, place: Location, numbers: Sequence[int]) -> None:
    from safetensors.torch import save

    if not numbers:
        return
    base = load_base(job.model, job.transformer).to(job.context.device)
    for number in with_progress(numbers, f"draw {job.name}"):
        generated = generate_set(
            base, job.name, job.shard(number), generate=job.generate, metrics=job.metrics, context=job.context
        )
        tensors = {
            PIXELS: generated.pixels,
            **{name: found.contiguous() for name, found in generated.found.items()},
        }
        (place / _name(number)).write(save(tensors))
    del base
    gc.collect()  # diffusers' hooks hold the module in a cycle, and the next model needs its memory


@dataclass(frozen=True)
class _Exchange:
    """Where tasks on any machine find what they read, with the digests of what they must fetch, and leave shards."""

    inputs: Location
    digests: Mapping[str, str]
    results: Location


@contextmanager
def _exchange(job: GenerationJob, directory: Path) -> Iterator[tuple[GenerationJob, _Exchange]]:
    """The job as tasks see it, and where they meet: on this machine's disk, or below SRPO_SHARED."""
    shared = storage()
    if shared is None:
        yield job, _Exchange(Location.of(Path.cwd()), {}, Location.of(directory))
        return
    inputs, results = (shared / name / directory.name for name in ("inputs", "drawn"))
    _collect(job, results, directory)  # of a run that was killed before it fetched them
    context = job.context
    scorers = (context.reward_settings, context.judge_settings, *context.scorer_settings.values())
    files = by_name([Path(job.model.path), *(Path(one.path) for one in scorers)])
    if job.transformer is not None:  # it may lie anywhere
        there = sorted(file for file in job.transformer.rglob("*") if file.is_file())
        files |= {f"{TRANSFORMER}/{file.relative_to(job.transformer)}": file for file in there}
        job = replace(job, transformer=Path(TRANSFORMER))
    yield job, _Exchange(inputs, share(files, inputs), results)
    _collect(job, results, directory)
    for place in (inputs / COMPLETE, inputs, results):
        place.delete()


def _collect(job: GenerationJob, results: Location, directory: Path) -> None:
    for number in _missing(job, directory):
        if (shard := results / _name(number)).exists():
            shard.download(directory / _name(number))


def _generate_on_ray(job: GenerationJob, directory: Path, resources: ResourceSettings) -> None:
    """Deal the shards to tasks that load the model once each; the first error of any is raised here."""
    import ray

    require_cluster()
    try:
        with (
            ray_for(resources.generate_workers, least=1, use_gpu=resources.use_gpu),
            _exchange(job, directory) as (shared_job, exchange),
        ):
            numbers = _missing(job, directory)
            # said here, not by `options`: only so does a task's process end with it and free its GPU
            task = ray.remote(
                num_cpus=1, num_gpus=int(resources.use_gpu), max_retries=0, scheduling_strategy="SPREAD"
            )(_generate_in_task)
            shared = ray.put(shared_job)
            shares = [
                numbers[first :: resources.generate_workers] for first in range(resources.generate_workers)
            ]
            waiting = [
                task.remote(shared, exchange, some, resources.threads_per_worker) for some in shares if some
            ]
            for _ in with_progress(range(len(waiting)), f"draw {job.name}"):
                done, waiting = ray.wait(waiting)
                ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SrpoError):
            raise cause from error
        line = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        raise SrpoError(f"drawing by {job.name} failed: {line}") from error
    except ray.exceptions.RayError as error:
        line = " ".join(str(error).split())[:300]
        raise SrpoError(f"drawing by {job.name} was cut off: {line}; the same command goes on") from error


def _generate_in_task(job: GenerationJob, exchange: _Exchange, numbers: Sequence[int], threads: int) -> None:
    torch.set_num_threads(threads)
    with local_copy(exchange.inputs, exchange.digests) as inputs:
        here = Path.cwd()
        os.chdir(inputs)  # Ray starts workers in a directory of its own
        try:
            _generate_some(job, exchange.results, numbers)
        finally:
            os.chdir(here)


def _missing(job: GenerationJob, directory: Path) -> list[int]:
    return [number for number in range(job.num_shards) if not (directory / _name(number)).exists()]


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"
