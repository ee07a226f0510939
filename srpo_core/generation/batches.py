"""Images generated in batches: by several Ray tasks at once, and kept on disk, so that a killed run resumes.

A batch is as many prompts of an image set as `generate.batch_size` holds, by one model. Its file is outside the
stage's outputs, in a directory named by a hash of everything that determines its content. The directory is removed
when the outputs are written and no other run of this machine reads it. Tasks on other machines exchange files with
the run through SRPO_SHARED.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from srpo_core.artifacts import home
from srpo_core.config import ResourceSettings
from srpo_core.errors import SrpoError
from srpo_core.generation.generated import PIXELS, GeneratedBatches, file_name
from srpo_core.generation.images import generate_set, measure_set
from srpo_core.generation.job import GenerationJob, fingerprint, weights_of
from srpo_core.generation.kept_images import GIGABYTE, KeptImages, source_of
from srpo_core.models import LoadedBase, files_to_load
from srpo_core.runtime import file_lock
from srpo_core.runtime.progress import Advance, progress_bar, with_progress
from srpo_core.runtime.ray_cluster import local_device, ray_for, require_cluster
from srpo_core.runtime.shared_files import (
    COMPLETE,
    Location,
    by_name,
    content_location,
    local_copy,
    share,
    storage,
)

# between two looks at which batches exist
POLL_SECONDS: Final = 0.5
REMOTE_POLL_SECONDS: Final = 10.0
TRANSFORMER: Final = "transformer_to_generate_with"  # its name where tasks of other machines find it

log = logging.getLogger(__name__)


def generate_batches(
    job: GenerationJob, resources: ResourceSettings, loaded: LoadedBase | None = None
) -> GeneratedBatches:
    """Generate and measure the batches that are missing, in this process or in `resources.generate_workers` Ray tasks.

    The number of tasks changes neither images nor figures.

    loaded: of the job's settings; it generates in this process, and keeps the base for the next job. None: the base is
    loaded for this job. A task always loads it.

    Raises:
        DivergenceError: the model generates NaN or infinity.
        ConfigError: the resources ask for a GPU, and neither this machine nor the cluster of RAY_ADDRESS has one.
        SrpoError: a task failed, or the cluster of RAY_ADDRESS does not answer.
    """
    directory = home() / "resume" / f"generate-{fingerprint(job)}"
    lock = file_lock.acquire(directory.with_suffix(".lock"), shared=True)
    try:
        directory.mkdir(exist_ok=True)
        if loaded is None:
            with closing(LoadedBase(job.model, job.generate, offload=resources.offload)) as own:
                _generate_missing(job, directory, resources, own)
        else:
            _generate_missing(job, directory, resources, loaded)
    except BaseException:
        lock.release()
        raise
    return GeneratedBatches(job, directory, lock)


def _generate_missing(
    job: GenerationJob, directory: Path, resources: ResourceSettings, loaded: LoadedBase
) -> None:
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
        _generate_some(without_real, Location.of(directory), missing, loaded, _kept_images(job, resources))
    else:
        _generate_on_ray(without_real, directory, resources)


def _kept_images(job: GenerationJob, resources: ResourceSettings) -> KeptImages | None:
    if not job.keep or not resources.kept_images_gb:
        return None
    settings = [job.model.base, job.model.height, job.model.width, job.generate.model_dump(mode="json")]
    place = (storage() or Location.of(home())) / "images"
    return KeptImages(place, source_of(weights_of(job), settings), resources.kept_images_gb * GIGABYTE)


def _generate_some(
    job: GenerationJob,
    place: Location,
    numbers: Sequence[int],
    loaded: LoadedBase,
    kept: KeptImages | None = None,
) -> None:
    """Generate and measure batches; the model is loaded when the first one is not among the kept images.

    In a Ray task nobody asks for reports: the process that started it counts the batches of all tasks.
    """
    from safetensors.torch import save

    base, reused, device = None, 0, job.context.device
    for number in with_progress(numbers, f"generate {job.name}"):
        part = job.batch(number)
        pixels = None if kept is None else kept.read(part, device)
        if pixels is not None:
            generated = measure_set(pixels, part, metrics=job.metrics, context=job.context)
            reused += 1
        else:
            base = base or loaded.as_model(job.transformer, device)
            generated = generate_set(
                base, job.name, part, generate=job.generate, metrics=job.metrics, context=job.context
            )
            if kept is not None:
                kept.write(part, device, generated.pixels)
        tensors = {
            PIXELS: generated.pixels,
            **{name: values.contiguous() for name, values in generated.measured.items()},
        }
        (place / file_name(number)).write(save(tensors))
    if reused:
        log.info("%s: the images of %d of %d batches are from an earlier run", job.name, reused, len(numbers))


@dataclass(frozen=True)
class _Exchange:
    """Where tasks on any machine read inputs, and where they write batches.

    inputs: their working directory; digests: of the files in it that they must fetch; own: likewise of a checkpoint's
    weights, None if they are where the job says.
    """

    inputs: Location
    digests: Mapping[str, str]
    results: Location
    own: tuple[Location, Mapping[str, str]] | None = None


@contextmanager
def _exchange(job: GenerationJob, directory: Path) -> Iterator[tuple[GenerationJob, _Exchange]]:
    """Yield the job with paths that tasks can read, and the exchange: on this disk, or below SRPO_SHARED.

    What all models need, the base and the scorers, is shared once, under a name by its content, and stays for later
    models and runs. The weights of a checkpoint are deleted when its images are generated.
    """
    shared = storage()
    if shared is None:
        yield job, _Exchange(Location.of(Path.cwd()), {}, Location.of(directory))
        return
    results, checkpoint = shared / "generated" / directory.name, shared / "inputs" / directory.name
    _collect(job, results, directory)  # batches of a run that was killed before it fetched them
    weights = files_to_load(job.model, job.transformer)
    own = None
    if job.transformer is not None:  # may be anywhere on this machine
        files = {
            f"{TRANSFORMER}/{file.relative_to(job.transformer)}": file
            for file in weights
            if file.is_relative_to(job.transformer)
        }
        weights = [file for file in weights if file not in files.values()]
        own = checkpoint, share(files, checkpoint)
        job = replace(job, transformer=Path(TRANSFORMER))
    scorers = [Path(one.path) for one in job.context.all_settings.values()]
    common = by_name([*files_to_load(job.model), *scorers])
    inputs = content_location(common, shared / "inputs" / "models")
    digests = share(common, inputs)
    needed = {name: digests[name] for name in by_name([*weights, *scorers])}
    yield job, _Exchange(inputs, needed, results, own)
    _collect(job, results, directory)
    for place in (checkpoint / COMPLETE, checkpoint, results):
        place.delete()


def _collect(job: GenerationJob, results: Location, directory: Path) -> None:
    for number in _missing(job, directory):
        if (batch := results / file_name(number)).exists():
            batch.download(directory / file_name(number))


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
            shared, kept = ray.put(shared_job), _kept_images(job, resources)
            shares = [
                numbers[first :: resources.generate_workers] for first in range(resources.generate_workers)
            ]
            waiting = [task.remote(shared, exchange, some, resources, kept) for some in shares if some]
            with progress_bar(f"generate {job.name}", len(numbers)) as advance:
                _await_batches(waiting, exchange.results, numbers, advance)
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


def _await_batches(tasks: list[Any], results: Location, numbers: Sequence[int], advance: Advance) -> None:
    """Wait for Ray tasks, and count the batches that they have written; raise the first error of any task."""
    import ray

    expected, seen = {file_name(number) for number in numbers}, 0
    poll = POLL_SECONDS if results.path else REMOTE_POLL_SECONDS
    while tasks:
        done, tasks = ray.wait(tasks, timeout=poll)
        ray.get(done)
        written = len(expected.intersection(results.names()))
        advance(written - seen)
        seen = written


def _generate_in_task(
    job: GenerationJob,
    exchange: _Exchange,
    numbers: Sequence[int],
    resources: ResourceSettings,
    kept: KeptImages | None = None,
) -> None:
    torch.set_num_threads(resources.threads_per_worker)
    with local_copy(exchange.inputs, exchange.digests) as inputs, ExitStack() as held:
        if exchange.own is not None:
            own = held.enter_context(local_copy(*exchange.own))
            job = replace(job, transformer=own / TRANSFORMER)
        here = Path.cwd()
        os.chdir(inputs)  # Ray starts workers in another directory
        try:
            with closing(LoadedBase(job.model, job.generate, offload=resources.offload)) as loaded:
                _generate_some(job, exchange.results, numbers, loaded, kept)
        finally:
            os.chdir(here)


def _missing(job: GenerationJob, directory: Path) -> list[int]:
    return [number for number in range(job.num_batches) if not (directory / file_name(number)).exists()]
