"""Write checkpoints: every rank its shards, in the foreground or in a background thread; see `checkpoint`."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import STEP_PREFIX, sha256, step_name
from srpo_core.errors import ArtifactError, SrpoError
from srpo_core.runtime.full_disk import REMEDY, is_full
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import (
    AVERAGES,
    OPTIMIZER,
    RESUME,
    STATE,
    WEIGHTS,
    attempt_files,
    require_files,
    step_location,
)
from srpo_core.training.state import TrainState, copy_to_cpu, optimizer_state, trained_parameters
from srpo_core.weights.shards import write_shards

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

VISIBLE_SECONDS: Final = 90.0  # until files of other machines must be visible here


@dataclass
class CheckpointWriter:
    """Write the checkpoints of one rank of a run; all ranks call `save` and `finish` in the same order.

    attempt: a name that no earlier writer had; keep: number of newest checkpoints that keep `resume/`; background:
    return from `save` as soon as the state is copied; group: a gloo group of all ranks if there are several.
    """

    root: Location
    attempt: str
    keep: int
    background: bool
    rank: int = 0
    world: int = 1
    group: "ProcessGroup | None" = None
    _pending: "Future[None] | None" = field(default=None, init=False)

    def save(self, state: TrainState) -> None:
        """Write the checkpoint after `state.step` steps; it replaces one of the same step."""
        self.finish()
        tensors: dict[str, Mapping[str, Tensor]] = {
            WEIGHTS: trained_parameters(state.transformer),
            OPTIMIZER: optimizer_state(state.transformer, state.optimizer),
            **({AVERAGES: state.averages} if state.averages else {}),
        }
        description = {
            "step": state.step,
            "metrics": list(state.metrics),
            "evaluations": list(state.evaluations),
        }
        if not self.background:
            self._write(tensors, description)
            return
        from concurrent.futures import ThreadPoolExecutor

        copies = {part: copy_to_cpu(group) for part, group in tensors.items()}
        pool = ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=_set_devices, initargs=_current_devices()
        )
        self._pending = pool.submit(self._write, copies, description)
        pool.shutdown(wait=False)

    def finish(self) -> None:
        """Wait for the background write. Raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, tensors: Mapping[str, Mapping[str, "Tensor"]], description: Mapping[str, Any]) -> None:
        """Write one checkpoint. Raises `SrpoError` if the disk is full; a restart of the workers would not help."""
        step = description["step"]
        with self._staging(step) as staging:
            try:
                self._write_to(staging, tensors, description)
            except BaseException as error:  # CheckpointException of torch is no Exception
                if not is_full(error):
                    raise
                shutil.rmtree(staging, ignore_errors=True)  # what it has of the disk
                raise SrpoError(
                    f"the disk of {staging.parent} is full and has no checkpoint of step {step}: {REMEDY}"
                ) from error

    def _write_to(
        self, staging: Path, tensors: Mapping[str, Mapping[str, "Tensor"]], description: Mapping[str, Any]
    ) -> None:
        target = step_location(self.root, description["step"])
        for part, group in tensors.items():
            write_shards(staging / part, group, self.group)
        own = [path for path in _files(staging) if self._is_own(path)]
        digests = self._merge_ranks({str(path.relative_to(staging)): sha256(path) for path in own})
        if target.path is None:
            for path in own:
                (attempt_files(target, self.attempt) / str(path.relative_to(staging))).upload(path)
            self._merge_ranks({})  # every rank has uploaded its files
        if self.rank == 0:
            self._commit(staging, {**description, "world": self.world, "sha256": digests})
        self._merge_ranks({})

    @contextmanager
    def _staging(self, step: int) -> Iterator[Path]:
        """Yield the directory to write to: on a disk shared by all ranks, else a temporary one of this rank."""
        if self.root.path is None:
            with tempfile.TemporaryDirectory(prefix="srpo-checkpoint-") as directory:
                yield Path(directory)
        else:
            # named by the attempt, so that files of an earlier, half-written one are never mixed in
            partial = self.root.path / f".{step_name(step)}.{self.attempt}.part"
            partial.mkdir(parents=True, exist_ok=True)
            yield partial

    def _is_own(self, path: Path) -> bool:
        """Return whether this rank wrote a shard; its name has the rank's number, counted from 1."""
        return self.world == 1 or path.name.startswith(f"shard-{self.rank + 1:05d}-")

    def _merge_ranks(self, own: dict[str, str]) -> dict[str, str]:
        """Merge the dictionaries of all ranks; also a barrier."""
        if self.group is None:
            return own
        from torch import distributed as dist

        gathered: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(gathered, own, group=self.group)
        return {name: value for part in gathered for name, value in sorted(part.items())}

    def _commit(self, staging: Path, description: Mapping[str, Any]) -> None:
        """Make a checkpoint appear under its name. Raises `ArtifactError` if files of another rank are missing."""
        target = step_location(self.root, description["step"])
        written = attempt_files(target, self.attempt) if target.path is None else Location.of(staging)
        try:
            _wait_for_files(written, description["sha256"])
        except ArtifactError as error:
            raise ArtifactError(f"{error}: workers that share no disk need SRPO_SHARED") from error
        if target.path is None:
            state = {**description, "attempt": self.attempt}
            (target / STATE).write(json.dumps(state, sort_keys=True).encode())
        else:
            (staging / STATE).write_text(json.dumps(description, sort_keys=True), encoding="utf-8")
            shutil.rmtree(target.path, ignore_errors=True)
            staging.rename(target.path)
        self._prune(description["step"])

    def _prune(self, newest: int) -> None:
        """Delete `resume/` of all but the newest checkpoints, and half-written files of earlier attempts."""
        names = self.root.names()
        steps = [name for name in names if name.startswith(STEP_PREFIX) and "." not in name]
        files = {name: attempt_files(self.root / name, _attempt_of(self.root / name)) for name in steps}
        for name in [name for name in steps if name <= step_name(newest)][: -self.keep]:
            (files[name] / RESUME).delete()
        referenced = {location.name for location in files.values()}
        for name in names:
            unreferenced = name.startswith(STEP_PREFIX) and "." in name and name not in referenced
            if name.endswith(".part") or unreferenced:
                (self.root / name).delete()


def _attempt_of(location: Location) -> str | None:
    """Return the attempt whose files a checkpoint uses; None if its state cannot be read or names none."""
    try:
        attempt: str | None = json.loads((location / STATE).read_text()).get("attempt")
    except (OSError, ValueError, AttributeError):
        return None
    return attempt


def _wait_for_files(location: Location, digests: Mapping[str, str]) -> None:
    """Wait until files that other ranks have just written are visible: NFS caches directory listings."""
    until = time.monotonic() + VISIBLE_SECONDS
    while digests.keys() - set(location.files()):
        if time.monotonic() > until:
            require_files(location, digests)
            return
        for name in digests:
            (location / name).exists()  # looks up the name itself, past a cached listing
        time.sleep(0.5)


def _current_devices() -> tuple[int] | tuple[()]:
    """Return the index of this thread's GPU, if there is one."""
    import torch

    return (torch.cuda.current_device(),) if torch.cuda.is_available() else ()


def _set_devices(*devices: int) -> None:
    """Bind a new thread to the GPU of its process; otherwise torch would open GPU 0 on every rank."""
    import torch

    for device in devices:
        torch.cuda.set_device(device)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
