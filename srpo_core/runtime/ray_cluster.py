"""Which Ray a stage runs its workers on: the cluster of RAY_ADDRESS, or one of its own on this machine."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import srpo_core
from srpo_core.config import ResourceSettings
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.shared_files import storage

if TYPE_CHECKING:
    import torch

CONNECT_SECONDS: Final = 10
OBJECT_STORE_BYTES: Final = 200_000_000  # workers exchange gradients and files, not objects

log = logging.getLogger(__name__)


@contextmanager
def ray_for(workers: int, *, least: int, use_gpu: bool) -> Iterator[None]:
    """A Ray with room for this many workers, for as long as the context is open.

    A cluster that has no room yet for the `least` of them, with a GPU each or a CPU, is said: Ray waits for it.

    Raises:
        ConfigError: the cluster has several machines and nothing says where they share files.
    """
    import ray

    try:
        with _options(workers) as options:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        require_shared_files(sum(node["Alive"] for node in ray.nodes()))
        _say_what_is_waited_for(least, "GPU" if use_gpu else "CPU", ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def require_cluster() -> None:
    """See that something listens at RAY_ADDRESS, if it is set: Ray itself would try for six minutes.

    Raises:
        ConfigError: it is not of the form host:port.
        SrpoError: nothing listens there.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(f"RAY_ADDRESS={address}: write host:port of a Ray head, such as 127.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise SrpoError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start it with 'ray start --head', "
            "or unset RAY_ADDRESS"
        ) from error


def require_shared_files(machines: int) -> None:
    """See that workers on several machines are told where they share files.

    Raises:
        ConfigError: they are not: each would read and write a disk of its own.
    """
    if machines > 1 and storage() is None:
        raise ConfigError(
            f"the cluster of RAY_ADDRESS has {machines} machines, which share no files that we know of: set "
            "SRPO_SHARED to s3://bucket/prefix, or to a directory that all of them mount"
        )


def local_device(resources: ResourceSettings) -> "torch.device":
    """The device of what runs in this process: the GPU that the settings ask for, or the CPU.

    The machine that drives a cluster of GPUs may have none; its CPU then does the work, and a line says so.

    Raises:
        ConfigError: the settings ask for a GPU, and neither this machine nor a cluster of RAY_ADDRESS has one.
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
    log.warning("resources.use_gpu: this machine has no GPU, so its CPU does what is not sent to the cluster")
    return torch.device("cpu")


def _say_what_is_waited_for(least: int, kind: str, resources: Mapping[str, float]) -> None:
    """Not an error: a cluster may grow while one waits."""
    if (there := int(resources.get(kind, 0))) < least:
        log.warning(
            "the cluster has %d %ss and %d are needed to begin: waiting until it has them", there, kind, least
        )


@contextmanager
def _options(workers: int) -> Iterator[dict[str, Any]]:
    """For a Ray of our own, with room for every worker; or for a cluster, whose workers get this code with their job.

    With a working directory given, Ray does not put the driver's own before it in their path.
    """
    if "RAY_ADDRESS" not in os.environ:
        cpus = max(os.cpu_count() or 1, workers)
        yield {"address": "local", "num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
        return
    package = Path(srpo_core.__file__).parent
    with TemporaryDirectory() as code:
        shutil.copytree(package, Path(code) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield {"runtime_env": {"working_dir": code}}
