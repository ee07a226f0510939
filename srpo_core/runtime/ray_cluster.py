"""Connect to Ray: the cluster of RAY_ADDRESS, or a local Ray on this machine."""

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import srpo_core
from srpo_core.config import ResourceSettings
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.file_lock import FileLock
from srpo_core.runtime.progress import reporting, without_reports
from srpo_core.runtime.ray_sessions import hold_session
from srpo_core.runtime.shared_files import storage

if TYPE_CHECKING:
    import torch

CONNECT_SECONDS: Final = 10
OBJECT_STORE_BYTES: Final = 200_000_000  # workers exchange gradients and files, not objects

log = logging.getLogger(__name__)


@contextmanager
def ray_for(workers: int, *, least: int, use_gpu: bool, threads: int) -> Iterator[int]:
    """Provide a Ray with room for `workers` while the context is open; yields the CPUs to reserve for each of them.

    threads: CPUs that a worker uses, see `reserved_cpus`. Warns if a cluster has no room yet for the `least` workers,
    with one GPU or CPU each: Ray waits for it.

    Raises:
        ConfigError: the cluster has several machines, and SRPO_SHARED is not set.
    """
    import ray

    held: list[FileLock | None] = []
    try:
        what = "connect to Ray" if "RAY_ADDRESS" in os.environ else "start Ray"
        # the workers of a local Ray inherit the environment, and this process reports for all of them
        with reporting(what), without_reports(), _init_options(workers) as options:
            context = ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        if "RAY_ADDRESS" not in os.environ:
            held.append(hold_session(Path(context.address_info["session_dir"])))
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        require_shared_files(len(machines))
        _warn_if_too_small(least, "GPU" if use_gpu else "CPU", ray.cluster_resources())
        yield reserved_cpus(machines, workers, use_gpu=use_gpu, threads=threads)
    finally:
        ray.shutdown()
        for lock in filter(None, held):
            lock.release()


def reserved_cpus(
    machines: Sequence[Mapping[str, float]], workers: int, *, use_gpu: bool, threads: int
) -> int:
    """Return the CPUs to reserve for each worker: its `threads`, or as many as leave room for all workers.

    machines: resources of each. Never so many that fewer workers fit than with one CPU each: a machine of two CPUs
    still starts a worker of four threads.
    """

    def room(cpus: int) -> int:
        return sum(
            int(min(one.get("CPU", 0) // cpus, one.get("GPU", 0) if use_gpu else workers)) for one in machines
        )

    needed = min(workers, room(1))
    if needed == 0:  # a cluster that is still empty: what its machines will have is not known
        return 1
    return next(cpus for cpus in range(threads, 0, -1) if room(cpus) >= needed)


def require_cluster(*, seconds: float = 0) -> None:
    """Require that a server listens at RAY_ADDRESS, if it is set; Ray itself would retry for many minutes.

    seconds: how long to wait for it, for instance while a head that has died is started again.

    Raises:
        ConfigError: RAY_ADDRESS does not have the form host:port.
        SrpoError: no server listens there.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(f"RAY_ADDRESS={address}: write host:port of a Ray head, such as 127.0.0.1:6379")
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            if time.monotonic() >= until:
                raise SrpoError(
                    f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start it with 'ray start --head', "
                    "or unset RAY_ADDRESS"
                ) from error
        else:
            return
        time.sleep(1)


def require_gpus(resources: ResourceSettings) -> None:
    """Require as many GPUs as the training workers need at least; Ray itself would wait for them forever.

    With RAY_ADDRESS nothing is required: a cluster may get them later.

    Raises:
        ConfigError: this machine has fewer.
    """
    if not resources.use_gpu or "RAY_ADDRESS" in os.environ:
        return
    import torch

    found = torch.cuda.device_count()
    if found < resources.min_train_workers:
        raise ConfigError(
            f"resources.use_gpu requires {resources.min_train_workers} GPUs, and this machine has {found}: lower "
            "resources.min_train_workers, set use_gpu to false, or set RAY_ADDRESS to a cluster"
        )


def require_shared_files(num_machines: int) -> None:
    """Require SRPO_SHARED if the workers run on several machines.

    Raises:
        ConfigError: it is not set, so each machine would read and write its own disk.
    """
    if num_machines > 1 and storage() is None:
        raise ConfigError(
            f"the cluster of RAY_ADDRESS has {num_machines} machines and no shared files are configured: set "
            "SRPO_SHARED to s3://bucket/prefix, or to a directory that all of them mount"
        )


def local_device(resources: ResourceSettings) -> "torch.device":
    """Return the device for computations in this process: a GPU if the settings ask for one, else the CPU.

    A machine that drives a cluster of GPUs may have none itself; then its CPU is used, with a warning.

    Raises:
        ConfigError: the settings ask for a GPU, this machine has none, and RAY_ADDRESS is not set.
    """
    import torch

    if not resources.use_gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            "resources.use_gpu is true and this machine has no GPU that torch can use: see 'srpo doctor', or set "
            "it to false"
        )
    log.warning(
        "resources.use_gpu: this machine has no GPU; its CPU computes what is not sent to the cluster"
    )
    return torch.device("cpu")


def _warn_if_too_small(least: int, kind: str, resources: Mapping[str, float]) -> None:
    """Warn if a cluster has too few devices; no error, because a cluster may grow."""
    if (available := int(resources.get(kind, 0))) < least:
        log.warning(
            "the cluster has %d %ss, and at least %d are needed: waiting until it has them",
            available,
            kind,
            least,
        )


@contextmanager
def _init_options(workers: int) -> Iterator[dict[str, Any]]:
    """Yield the options of `ray.init` for a local Ray, or for a cluster, to which this package's code is sent.

    With a working directory given, Ray does not put the driver's directory first in the workers' module path.
    """
    if "RAY_ADDRESS" not in os.environ:
        cpus = max(os.cpu_count() or 1, workers)
        yield {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,  # it would open a port without authentication, and start ten processes
        }
        return
    package = Path(srpo_core.__file__).parent
    with TemporaryDirectory() as code:
        shutil.copytree(package, Path(code) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield {"runtime_env": {"working_dir": code}}
