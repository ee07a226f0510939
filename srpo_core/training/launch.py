"""Run the training workers on Ray, and start them again from the newest checkpoint when they fail."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from srpo_core.artifacts import EMBEDDINGS, home
from srpo_core.errors import SrpoError
from srpo_core.runtime.ray_cluster import ray_for, require_cluster
from srpo_core.runtime.shared_files import Location, by_name, share, storage
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.watchdog import stalled
from srpo_core.training.worker import TrainJob, train_worker

log = logging.getLogger(__name__)

# How many workers there are is settled at a start: Ray would end a group at work, and begin its part again from
# where it began, as soon as a device comes free.
NEVER: Final = 1e9


def places(directory: Path, *weights: str) -> tuple[Location, dict[str, str], Location]:
    """Where workers find the inputs, the digests of those that they must fetch, and where they keep their state.

    On this machine's disk: here, and the resume directory. With `SRPO_SHARED`: copies below it, of the
    directories `weights` and of the embedded training prompts.

    Raises:
        ConfigError: a path in the settings is absolute, so that no worker elsewhere could find it.
    """
    shared = storage()
    if shared is None:
        return Location.of(Path.cwd()), {}, Location.of(directory)
    inputs, state = shared / "inputs" / directory.name, shared / "resume" / directory.name
    # what the fingerprint in the directory's name covers, and no more: it would differ under the same name
    digests = share(by_name([*map(Path, weights), EMBEDDINGS / "train.safetensors"]), inputs)
    return inputs, digests, state


def fit(job: TrainJob, worker: Callable[[TrainJob], None] = train_worker) -> None:
    """Run the workers on Ray until all steps are done: on the cluster of RAY_ADDRESS, else on a Ray of our own.

    When the group of workers fails, it is started again from the newest checkpoint, a bounded number of times.
    A worker's own error is raised again here as it was.
    """
    require_cluster()
    restarts = job.resources.stall.restarts
    for attempt in range(restarts + 1):
        newest = newest_checkpoint(job.state, job.train.checkpoint_steps)
        resume = min(newest.step, job.train.steps) if newest else 0
        if resume == job.train.steps:
            return
        try:
            _fit_once(replace(job, resume=resume, attempt=uuid4().hex[:8]), worker)
        except _GroupFailedError as failure:
            if attempt == restarts:
                raise SrpoError(f"training failed {attempt + 1} times: {failure}") from failure
            log.warning("%s; starting the workers again, %d of %d times", failure, attempt + 1, restarts)
        else:
            return


class _GroupFailedError(Exception):
    """The workers failed in a way that another start may mend."""


def _fit_once(job: TrainJob, worker: Callable[[TrainJob], None]) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources, name = job.resources, f"{job.state.name}-{job.attempt}"
    most, least = resources.train_workers, resources.min_train_workers
    try:
        with ray_for(most, least=least, use_gpu=resources.use_gpu):
            TorchTrainer(
                worker,
                train_loop_config=job,
                scaling_config=ScalingConfig(
                    num_workers=most if least == most else (least, most),
                    use_gpu=resources.use_gpu,
                    elastic_resize_monitor_interval_s=NEVER,
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=str(home() / "ray"),
                    failure_config=FailureConfig(max_failures=0),
                ),
            ).fit()
    except ray.train.TrainingFailedError as error:
        if stood := stalled(job.state, job.attempt):
            raise _GroupFailedError(stood) from error
        raise _own_error(error) from error
    except (RayError, ConnectionError) as error:
        raise _GroupFailedError(f"Ray ended: {_one_line(error)}") from error
    finally:
        shutil.rmtree(home() / "ray" / name, ignore_errors=True)


def _own_error(error: Any) -> Exception:
    """The error of ours that a worker raised; any other is one that another start may mend."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, SrpoError):
            return failure
    rank, cause = next(iter(failures.items()), ("?", error))
    return _GroupFailedError(f"worker {rank} failed: {_one_line(cause)}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(" Worker info:")[0]  # Ray goes on for a page
    return f"{type(error).__name__}: {text[:300]}"
