"""Training state: sharded, atomic, checked by digests, without pickles.

A checkpoint is a directory of shards that torch.distributed.checkpoint writes as safetensors, so any number of
workers can read what any number has written:

    weights/     what is trained, by parameter name: the whole transformer, or its adapters
    resume/      the optimizer's state by `parameter:name`, and the random state of each rank
    state.json   step, data cursor, metrics so far, and the SHA-256 of every other file; written last

It appears under its name only when it is complete: on a disk its directory is renamed; in object storage the files
lie below a name of the attempt that wrote them, so that no straggler of another touches them, and `state.json`, a
single object, says which attempt's count. The newest keep `resume/`; every one keeps its weights.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import sha256
from srpo_core.errors import ArtifactError
from srpo_core.runtime.shared_files import Location, local_copy
from srpo_core.weights.shards import read_shards, write_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

WEIGHTS = "weights"
RESUME = "resume"
OPTIMIZER = f"{RESUME}/optimizer"
RANDOM = f"{RESUME}/random"
STATE = "state.json"
SETTLE: Final = 90.0  # seconds for what another machine wrote to show here

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: where it is, the steps done, and one row of metrics per step.

    location: of its files; cursor: how many images have been used, and the epoch and place in it of the next;
    digests: SHA-256 by file; resumable: whether the optimizer's state is there.
    """

    location: Location
    step: int
    metrics: Sequence[Mapping[str, float]]
    cursor: Mapping[str, int]
    digests: Mapping[str, str]
    resumable: bool

    def verify(self) -> None:
        """Hold every file to its digest. Raises `ArtifactError`."""
        for name, digest in self.digests.items():
            if (self.location / name).sha256() != digest:
                raise ArtifactError(f"checkpoint {self.location} is damaged: {name} does not have its digest")


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds of a worker at the end of a step."""

    transformer: "torch.nn.Module"
    optimizer: "torch.optim.Optimizer"
    step: int
    cursor: Mapping[str, int]
    metrics: Sequence[Mapping[str, float]]


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of one rank of a run; all ranks call `save` and `finish` alike.

    keep: newest checkpoints that keep their `resume/`; group: a gloo group of all ranks when there are several;
    background: return from `save` as soon as the state is copied. attempt: a name that no earlier writer had.
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
        tensors = {WEIGHTS: trained(state.transformer), OPTIMIZER: moments(state)}
        description = {"step": state.step, "cursor": dict(state.cursor), "metrics": list(state.metrics)}
        random = random_state()
        if not self.background:
            self._write(tensors, random, description)
            return
        from concurrent.futures import ThreadPoolExecutor

        copies = {part: _copied(group) for part, group in tensors.items()}
        pool = ThreadPoolExecutor(
            1, thread_name_prefix="checkpoint", initializer=_on_device, initargs=_device()
        )
        self._pending = pool.submit(self._write, copies, random, description)
        pool.shutdown(wait=False)

    def finish(self) -> None:
        """Wait for a checkpoint that is being written. Raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(
        self, tensors: Mapping[str, Mapping[str, "Tensor"]], random: Mapping[str, "Tensor"], description: Any
    ) -> None:
        from safetensors.torch import save_file

        target = step_location(self.root, description["step"])
        with self._staging(description["step"]) as staging:
            for part, group in tensors.items():
                write_shards(staging / part, group, self.group)
            (staging / RANDOM).mkdir(parents=True, exist_ok=True)
            save_file(dict(random), staging / RANDOM / f"rank-{self.rank:05d}.safetensors")
            own = [path for path in _files(staging) if self._is_own(path)]
            digests = self._of_all_ranks({str(path.relative_to(staging)): sha256(path) for path in own})
            if target.path is None:
                for path in own:
                    (_files_of(target, self.attempt) / str(path.relative_to(staging))).upload(path)
                self._of_all_ranks({})  # everything is there
            if self.rank == 0:
                self._commit(staging, {**description, "world": self.world, "sha256": digests})
            self._of_all_ranks({})

    @contextmanager
    def _staging(self, step: int) -> Iterator[Path]:
        """The directory that is written to: one of all ranks beside its final place, or one of this rank's own."""
        if self.root.path is None:
            with tempfile.TemporaryDirectory(prefix="srpo-checkpoint-") as directory:
                yield Path(directory)
        else:
            # named by the attempt: what an earlier one left half written, or still writes, is never mixed in
            partial = self.root.path / f".{step_name(step)}.{self.attempt}.part"
            partial.mkdir(parents=True, exist_ok=True)
            yield partial

    def _is_own(self, path: Path) -> bool:
        """Whether this rank wrote a shard, which bears its number."""
        if path.parent.name == "random":
            return path.name == f"rank-{self.rank:05d}.safetensors"
        return self.world == 1 or path.name.startswith(f"shard-{self.rank + 1:05d}-")

    def _of_all_ranks(self, mine: dict[str, str]) -> dict[str, str]:
        """What all ranks say, merged; none goes on before all have said it."""
        if self.group is None:
            return mine
        from torch import distributed as dist

        said: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(said, mine, group=self.group)
        return {name: value for part in said for name, value in sorted(part.items())}

    def _commit(self, staging: Path, description: Mapping[str, Any]) -> None:
        """Let a checkpoint appear under its name. Raises `ArtifactError` when a rank's files are not here."""
        target = step_location(self.root, description["step"])
        written = _files_of(target, self.attempt) if target.path is None else Location.of(staging)
        try:
            _await_files(written, description["sha256"])
        except ArtifactError as error:
            raise ArtifactError(f"{error}: workers that share no disk need SRPO_SHARED") from error
        if target.path is None:
            state = {**description, "attempt": self.attempt}
            (target / STATE).write(json.dumps(state, sort_keys=True).encode())
        else:
            (staging / STATE).write_text(json.dumps(description, sort_keys=True), encoding="utf-8")
            shutil.rmtree(target.path, ignore_errors=True)
            staging.rename(target.path)
        self._thin_out(description["step"])

    def _thin_out(self, newest: int) -> None:
        """Drop what only resuming needs from all but the newest, and what earlier attempts left half written."""
        names = self.root.names()
        steps = [name for name in names if name.startswith("step-") and "." not in name]
        places = {name: _files_of(self.root / name, _attempt_of(self.root / name)) for name in steps}
        for name in [name for name in steps if name <= step_name(newest)][: -self.keep]:
            (places[name] / RESUME).delete()
        counted = {place.name for place in places.values()}
        for name in names:
            if name.endswith(".part") or (name.startswith("step-") and "." in name and name not in counted):
                (self.root / name).delete()


def newest_checkpoint(root: Location, steps: Iterable[int]) -> Checkpoint | None:
    """The checkpoint to go on from: the last that can be, of the unbroken row of complete ones, or None.

    steps: after which there may be one, rising. The one that is returned has been verified, the others are only seen
    to be complete: reading all of them may take hours, and exporting them verifies them too. A damaged one is named;
    what lies behind it or behind a gap is trained again.
    """
    found: list[Checkpoint] = []
    for step in steps:
        location = step_location(root, step)
        if not location.exists():
            break
        try:
            checkpoint = open_checkpoint(location, check=False)
        except ArtifactError as error:
            log.warning("%s; going on from step %d", error, found[-1].step if found else 0)
            break
        found += [checkpoint] if checkpoint.resumable else []
    while found:
        newest = found.pop()
        try:
            newest.verify()
        except ArtifactError as error:
            log.warning("%s; going on from step %d", error, found[-1].step if found else 0)
        else:
            return newest
    return None


def step_name(step: int) -> str:
    """What the checkpoint after `step` steps is called."""
    return f"step-{step:06d}"


def step_location(root: Location, step: int) -> Location:
    """Where the checkpoint after `step` steps lies below `root`."""
    return root / step_name(step)


def open_checkpoint(location: Location, *, check: bool = True) -> Checkpoint:
    """Read a checkpoint's state and see that all files are there; `check` also holds them to their digests.

    Raises:
        ArtifactError: a file is missing or altered.
    """
    try:
        state = json.loads((location / STATE).read_text())
        files = _files_of(location, state.get("attempt"))
        digests: dict[str, str] = state["sha256"]
        for_resume = {name for name in digests if name.startswith(f"{RESUME}/")}
        # thinned out as a whole, which a kill may cut short: what is left of it is not damage
        resumable = bool(for_resume) and for_resume <= set(files.files())
        kept = {name: digest for name, digest in digests.items() if resumable or name not in for_resume}
        _require_files(files, kept)
        checkpoint = Checkpoint(files, state["step"], state["metrics"], state["cursor"], kept, resumable)
        if check:
            checkpoint.verify()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"checkpoint {location} is damaged: {error}") from error
    return checkpoint


def _files_of(location: Location, attempt: str | None) -> Location:
    """Where a checkpoint's files are: below its own name, or below that of the attempt that wrote them."""
    return location if attempt is None else Location(f"{location.uri}.{attempt}")


def _attempt_of(location: Location) -> str | None:
    """The attempt whose files a checkpoint holds, if its state can be read and says so."""
    try:
        attempt: str | None = json.loads((location / STATE).read_text()).get("attempt")
    except (OSError, ValueError, AttributeError):
        return None
    return attempt


def _require_files(place: Location, digests: Mapping[str, str]) -> None:
    if missing := sorted(digests.keys() - set(place.files())):
        raise ArtifactError(
            f"checkpoint {place} is damaged: {len(missing)} of {len(digests)} files are missing, {missing[0]} the first"
        )


def _await_files(place: Location, digests: Mapping[str, str]) -> None:
    """Require files that other ranks have just written, where they may show late: NFS keeps listings for a while."""
    until = time.monotonic() + SETTLE
    while digests.keys() - set(place.files()):
        if time.monotonic() > until:
            _require_files(place, digests)
            return
        for name in digests:
            (place / name).exists()  # asks for the name itself, past a listing that is kept
        time.sleep(0.5)


def restore(
    checkpoint: Checkpoint,
    transformer: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    *,
    rank: int = 0,
) -> None:
    """Put weights, optimizer and random state back, whatever the number of workers was that saved them."""
    import torch

    with local_copy(checkpoint.location, checkpoint.digests) as directory:
        with torch.no_grad():
            read_shards(directory / WEIGHTS, trained(transformer))
        _prepare(optimizer)
        state = _flat(transformer, optimizer)
        read_shards(directory / OPTIMIZER, state)
        for (parameter, name), tensor in zip(_entries(transformer, optimizer), state.values(), strict=True):
            kept = optimizer.state[parameter][name]
            kept.copy_(tensor.view(kept.shape) if tensor.ndim != kept.ndim else tensor)
        _restore_random(directory / RANDOM / f"rank-{rank:05d}.safetensors")


def _device() -> tuple[int] | tuple[()]:
    """The GPU of this thread, if there is one."""
    import torch

    return (torch.cuda.current_device(),) if torch.cuda.is_available() else ()


def _on_device(*device: int) -> None:
    """Bind a new thread to the GPU of its process: torch asks for its stream, and would open GPU 0 of every rank."""
    import torch

    for one in device:
        torch.cuda.set_device(one)


def trained(transformer: "torch.nn.Module") -> dict[str, "Tensor"]:
    """What training changes, by name: parameters that ask for a gradient."""
    return {name: p.detach() for name, p in transformer.named_parameters() if p.requires_grad}


def moments(state: TrainState) -> dict[str, "Tensor"]:
    """The optimizer's state by `parameter:name`. Raises `ArtifactError` when a trained parameter has none."""
    return _flat(state.transformer, state.optimizer)


def random_state() -> dict[str, "Tensor"]:
    """The state of torch's generators of this process. Training draws from keyed ones alone; a model may not."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _entries(
    transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer"
) -> Iterator[tuple["Tensor", str]]:
    """(parameter, name) of each tensor of the optimizer's state, in the order of the parameters."""
    for parameter in transformer.parameters():
        for name in sorted(optimizer.state.get(parameter, {})):
            yield parameter, name


def _flat(transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> dict[str, "Tensor"]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in transformer.named_parameters()}
    bare = [name for p, name in names.items() if p.requires_grad and not optimizer.state.get(p)]
    if bare:
        raise ArtifactError(
            f"the optimizer has no state of {len(bare)} trained tensors, {bare[0]} the first: training could not "
            "go on from such a checkpoint"
        )
    return {
        # a step count has no dimension, and shards are cut along one
        f"{names[parameter]}:{name}": tensor
        if (tensor := optimizer.state[parameter][name]).ndim
        else tensor.view(1)
        for parameter, name in _entries(transformer, optimizer)
    }


def _prepare(optimizer: "torch.optim.Optimizer") -> None:
    """Let the optimizer make its state, which it does at its first step, without moving a weight."""
    import torch

    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _restore_random(path: Path) -> None:
    """Put the generators back; a rank that did not exist when the checkpoint was saved keeps its own state."""
    import torch
    from safetensors.torch import load_file

    if not path.exists():
        return
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _copied(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Copies on the CPU, which the next step leaves alone; each rank's share stays a share."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )
    copies: dict[str, Tensor] = stager.stage(dict(tensors))  # type: ignore[assignment]
    stager.close()
    return copies


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
