"""Files that a model generates one by one, in this process or in several Ray tasks at once.

A file is a batch of images, or one pair of noise and image. Tasks on other machines exchange files with the run through
SRPO_SHARED.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import torch

from srpo_core.config import GenerateSettings, ModelSettings, ResourceSettings
from srpo_core.errors import SrpoError
from srpo_core.models import LoadedBase, files_to_load
from srpo_core.runtime.progress import Advance, progress_bar
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

# between two looks at which files exist
POLL_SECONDS: Final = 0.5
REMOTE_POLL_SECONDS: Final = 10.0
TRANSFORMER: Final = "transformer_to_generate_with"  # its name where tasks of other machines find it


class Job(Protocol):
    """What determines the files that one model generates.

    transformer: directory of the model's weights, None for the base's own; file_names: of file 0, 1, …; scorers:
    directories of what measures the images.
    """

    @property
    def name(self) -> str:
        """In messages."""
        ...

    @property
    def model(self) -> ModelSettings:
        """The base."""
        ...

    @property
    def generate(self) -> GenerateSettings:
        """Precision and size of the batches."""
        ...

    @property
    def transformer(self) -> Path | None:
        """Directory of the model's weights, None for the base's own."""
        ...

    @property
    def file_names(self) -> Sequence[str]:
        """The name of each file, by its number."""
        ...

    @property
    def scorers(self) -> Sequence[Path]:
        """Directories of what measures the images."""
        ...

    def on(self, device: torch.device) -> Self:
        """Return what a process needs to generate on a device."""
        ...

    def with_transformer(self, directory: Path) -> Self:
        """Return the job with the model's weights in another directory."""
        ...


# Generates some files, by their numbers, below a location. The last argument: what later runs reuse, or None.
Make = Callable[[Any, Location, Sequence[int], LoadedBase, Any], None]


def generate_missing(
    job: Job, directory: Path, resources: ResourceSettings, loaded: LoadedBase, *, make: Make, kept: Any
) -> None:
    """Generate the files that a directory lacks, in this process or in `resources.generate_workers` Ray tasks.

    kept: what later runs reuse, or None. Raises what `make` raises, and as `generate_batches`.
    """
    missing = missing_files(job, directory)
    only_cluster_has_gpu = resources.use_gpu and not torch.cuda.is_available()
    here = resources.generate_workers == 1 or not missing or (len(missing) == 1 and not only_cluster_has_gpu)
    if here or "RAY_ADDRESS" not in os.environ:  # a local Ray would wait forever for a missing GPU
        device = local_device(resources)
    else:
        device = torch.device("cuda" if resources.use_gpu else "cpu")
    own = job.on(device)
    if here:
        make(own, Location.of(directory), missing, loaded, kept)
    else:
        _generate_on_ray(own, directory, resources, make, kept)


@dataclass(frozen=True)
class Exchange:
    """Where tasks on any machine read inputs, and where they write files.

    inputs: their working directory; digests: of the files in it that they must fetch; own: likewise of a checkpoint's
    weights, None if they are where the job says.
    """

    inputs: Location
    digests: Mapping[str, str]
    results: Location
    own: tuple[Location, Mapping[str, str]] | None = None


@contextmanager
def exchange_for(job: Job, directory: Path) -> Iterator[tuple[Any, Exchange]]:
    """Yield the job with paths that tasks can read, and the exchange: on this disk, or below SRPO_SHARED.

    What all models need, the base and the scorers, is shared once, under a name by its content, and stays for later
    models and runs. The weights of a checkpoint are deleted when its images are generated.
    """
    shared = storage()
    if shared is None:
        yield job, Exchange(Location.of(Path.cwd()), {}, Location.of(directory))
        return
    results, checkpoint = shared / "generated" / directory.name, shared / "inputs" / directory.name
    _collect(job, results, directory)  # files of a run that was killed before it fetched them
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
        job = job.with_transformer(Path(TRANSFORMER))
    scorers = job.scorers
    common = by_name([*files_to_load(job.model), *scorers])
    inputs = content_location(common, shared / "inputs" / "models")
    digests = share(common, inputs)
    needed = {name: digests[name] for name in by_name([*weights, *scorers])}
    yield job, Exchange(inputs, needed, results, own)
    _collect(job, results, directory)
    for place in (checkpoint / COMPLETE, checkpoint, results):
        place.delete()


def _collect(job: Job, results: Location, directory: Path) -> None:
    for number in missing_files(job, directory):
        name = job.file_names[number]
        if (file := results / name).exists():
            file.download(directory / name)


def _generate_on_ray(job: Job, directory: Path, resources: ResourceSettings, make: Make, kept: Any) -> None:
    """Distribute the missing files over tasks that load the model once each; raise the first error of any task."""
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
            exchange_for(job, directory) as (shared_job, exchange),
        ):
            numbers = missing_files(job, directory)
            # set here, not with `options`: otherwise the task's process would outlive it and keep its GPU
            task = ray.remote(
                num_cpus=cpus, num_gpus=int(resources.use_gpu), max_retries=0, scheduling_strategy="SPREAD"
            )(generate_in_task)
            shared = ray.put(shared_job)
            shares = [
                numbers[first :: resources.generate_workers] for first in range(resources.generate_workers)
            ]
            waiting = [task.remote(shared, exchange, some, resources, make, kept) for some in shares if some]
            with progress_bar(f"generate {job.name}", len(numbers)) as advance:
                _await_files(
                    waiting, exchange.results, [job.file_names[number] for number in numbers], advance
                )
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


def _await_files(tasks: list[Any], results: Location, names: Sequence[str], advance: Advance) -> None:
    """Wait for Ray tasks, and count the files that they have written; raise the first error of any task."""
    import ray

    expected, seen = set(names), 0
    poll = POLL_SECONDS if results.path else REMOTE_POLL_SECONDS
    while tasks:
        done, tasks = ray.wait(tasks, timeout=poll)
        ray.get(done)
        written = len(expected.intersection(results.names()))
        advance(written - seen)
        seen = written


def generate_in_task(
    job: Any,
    exchange: Exchange,
    numbers: Sequence[int],
    resources: ResourceSettings,
    make: Make,
    kept: Any = None,
) -> None:
    """Generate some files in a Ray task, which loads the model for itself."""
    torch.set_num_threads(resources.threads_per_worker)
    with local_copy(exchange.inputs, exchange.digests) as inputs, ExitStack() as held:
        if exchange.own is not None:
            own = held.enter_context(local_copy(*exchange.own))
            job = job.with_transformer(own / TRANSFORMER)
        here = Path.cwd()
        os.chdir(inputs)  # Ray starts workers in another directory
        try:
            with closing(LoadedBase(job.model, job.generate, offload=resources.offload)) as loaded:
                make(job, exchange.results, numbers, loaded, kept)
        finally:
            os.chdir(here)


def missing_files(job: Job, directory: Path) -> list[int]:
    """Return the numbers of the files that a directory lacks."""
    return [number for number, name in enumerate(job.file_names) if not (directory / name).exists()]
