"""Images generated in batches: by several Ray tasks at once, and kept on disk, so that a killed run resumes.

A batch is as many prompts of an image set as `generate.batch_size` holds, by one model. Its file is outside the
stage's outputs, in a directory named by a hash of everything that determines its content. The directory is removed
when the outputs are written and no other run of this machine reads it. Tasks on other machines exchange files with
the run through SRPO_SHARED.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing

from srpo_core.artifacts import home
from srpo_core.config import ResourceSettings
from srpo_core.generation.generated import PIXELS, GeneratedBatches
from srpo_core.generation.images import generate_set, measure_set
from srpo_core.generation.job import GenerationJob, file_name, fingerprint
from srpo_core.generation.kept_images import CODE, KeptImages
from srpo_core.generation.keys import source_of, weights_of
from srpo_core.generation.tasks import generate_missing, missing_files
from srpo_core.models import LoadedBase
from srpo_core.runtime import file_lock
from srpo_core.runtime.kept_files import kept_files
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.shared_files import Location

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
        if done := job.num_batches - len(missing_files(job, directory)):
            log.info("%s: %d of %d batches are already generated", job.name, done, job.num_batches)
        with ExitStack() as stack:
            if loaded is None:
                loaded = stack.enter_context(
                    closing(LoadedBase(job.model, job.generate, offload=resources.offload))
                )
            kept = _kept_images(job, resources)
            generate_missing(job, directory, resources, loaded, make=generate_some, kept=kept)
    except BaseException:
        lock.release()
        raise
    return GeneratedBatches(job, directory, lock)


def _kept_images(job: GenerationJob, resources: ResourceSettings) -> KeptImages | None:
    files = kept_files(resources) if job.keep else None
    if files is None:
        return None
    settings = [job.model.base, job.model.height, job.model.width, job.generate.model_dump(mode="json")]
    return KeptImages(files, source_of(weights_of(job.model, job.transformer), settings, CODE))


def generate_some(
    job: GenerationJob,
    place: Location,
    numbers: Sequence[int],
    loaded: LoadedBase,
    kept: KeptImages | None = None,
) -> None:
    """Generate and measure batches, by their numbers; the model is loaded when the first one is not among the kept images.

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
