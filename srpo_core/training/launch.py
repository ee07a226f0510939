"""Run the training workers on Ray, and restart them from the newest checkpoint when they fail."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from srpo_core.artifacts import EMBEDDINGS, ROLLOUTS, home
from srpo_core.config import ResourceSettings
from srpo_core.errors import SrpoError
from srpo_core.models.embeddings import ALARM
from srpo_core.runtime.full_disk import REMEDY, is_full
from srpo_core.runtime.ray_cluster import ray_for, require_cluster, require_gpus
from srpo_core.runtime.shared_files import Location, by_name, share, storage
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.job import TrainJob
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.watchdog import collective_timeout, pop_stall, restart_line
from srpo_core.training.worker import train_worker

HEAD_SECONDS: Final = 60.0  # for a head that has died to be started again

log = logging.getLogger(__name__)

# The number of workers is fixed at the start. Otherwise Ray would end a working group as soon as a device becomes
# free, and repeat the steps since its start.
NEVER: Final = 1e9


def share_inputs(directory: Path, *weights: Path) -> tuple[Location, dict[str, str], Location]:
    """Return the location of the workers' inputs, the digests of those to download, and the location of the state.

    On this machine: the working directory, no digests, and the resume directory. With `SRPO_SHARED`: locations
    below it, to which the files and directories `weights` and the prompts and pairs of training are copied.

    Raises:
        ConfigError: a path in the settings is absolute, so workers on other machines could not find it.
    """
    shared = storage()
    if shared is None:
        return Location.of(Path.cwd()), {}, Location.of(directory)
    inputs, state = shared / "inputs" / directory.name, shared / "resume" / directory.name
    # only files that the fingerprint in the directory's name covers: others may change under the same name
    embedded = (EMBEDDINGS / f"{split}.safetensors" for split in ("train", ALARM))
    digests = share(by_name([*weights, *embedded, ROLLOUTS]), inputs)
    return inputs, digests, state


def base_images(name: str) -> Location:
    """Return the directory of early stop's figures of the base's images, which all runs with this base and prompts share.

    name: identifies all that determines the figures except the number of workers; see `resume.key_of`.
    """
    return (storage() or Location.of(home())) / "base_images" / name


def fit(job: TrainJob, worker: Callable[[TrainJob], None] = train_worker) -> None:
    """Run the workers on Ray until all steps are done: on the cluster of RAY_ADDRESS, else on a local Ray.

    When the group of workers fails, it restarts from the newest checkpoint, up to `resources.stall.restarts` times.

    Raises:
        ConfigError: this machine has too few GPUs and there is no cluster.
        SrpoError: no cluster answers, or the last restart failed too. An `SrpoError` of a worker is raised as it is.
    """
    require_gpus(job.resources)
    require_cluster()
    restarts = job.resources.stall.restarts
    for attempt in range(restarts + 1):
        newest = newest_checkpoint(job.state, checkpoint_steps(job.train))
        resume = min(newest.step, job.train.steps) if newest else 0
        if resume == job.train.steps:
            return
        try:
            _fit_once(replace(job, resume=resume, attempt=uuid4().hex[:8]), worker)
        except _GroupFailedError as failure:
            if attempt == restarts:
                raise SrpoError(f"training failed {attempt + 1} times: {failure}") from failure
            log.warning("%s", restart_line(str(failure), attempt + 1, restarts))
            require_cluster(seconds=HEAD_SECONDS)
        else:
            return


class _GroupFailedError(Exception):
    """The workers failed in a way that a restart may fix."""


def _fit_once(job: TrainJob, worker: Callable[[TrainJob], None]) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources, name = job.resources, f"{job.state.name}-{job.attempt}"
    most, least, threads = resources.train_workers, resources.min_train_workers, resources.threads_per_worker
    try:
        with ray_for(most, least=least, use_gpu=resources.use_gpu, threads=threads) as cpus:
            TorchTrainer(
                worker,
                train_loop_config=job,
                torch_config=TorchConfig(timeout_s=int(collective_timeout(resources.stall).total_seconds())),
                scaling_config=scaling(resources, cpus=cpus),
                run_config=RunConfig(
                    name=name,
                    storage_path=str(home() / "ray"),
                    failure_config=FailureConfig(max_failures=0),
                ),
            ).fit()
    except ray.train.TrainingFailedError as error:
        if stall := pop_stall(job.state, job.attempt):
            raise _GroupFailedError(stall) from error
        raise _worker_error(error) from error
    except (RayError, ConnectionError) as error:
        raise _GroupFailedError(f"Ray ended: {_one_line(error)}") from error
    finally:
        shutil.rmtree(home() / "ray" / name, ignore_errors=True)


def scaling(resources: ResourceSettings, *, cpus: int) -> Any:
    """Return Ray's configuration of the workers, each with `cpus` CPUs and, if the settings say so, one GPU."""
    from ray.train import ScalingConfig

    most, least = resources.train_workers, resources.min_train_workers
    return ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=resources.use_gpu,
        resources_per_worker={"CPU": cpus},
        elastic_resize_monitor_interval_s=NEVER,
    )


def _worker_error(error: Any) -> Exception:
    """Return the `SrpoError` that a worker raised, else a `_GroupFailedError` with the first worker's error."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, SrpoError):
            return failure
    for rank, failure in failures.items():
        if is_full(failure):
            return SrpoError(f"worker {rank} failed on a full disk: {_one_line(failure)}: {REMEDY}")
    rank, cause = next(iter(failures.items()), ("?", error))
    return _GroupFailedError(f"worker {rank} failed: {_one_line(cause)}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(" Worker info:")[0]  # a page of Ray's details follows
    return f"{type(error).__name__}: {text[:300]}"
