"""Checkpoints of a training run: their layout, how they are found, verified and restored.

A checkpoint is a directory of safetensors that torch.distributed.checkpoint writes, without pickles, so any number
of workers can read what any other number has written:

    weights/            the trained parameters by name: the whole transformer, or its adapters
    ema/                their moving averages by the same names, with `train.ema` only
    resume/optimizer/   the optimizer's state by `parameter:name`
    state.json          step, metrics and evaluations so far, and the SHA-256 of every other file; written last

It appears under its name only when it is complete. On a disk, its directory is renamed. In object storage, the
files are stored below a name that includes the attempt that wrote them, so another attempt that still writes cannot
change them, and the single object `state.json` names the attempt that counts. Only the newest checkpoints keep
`resume/`; all keep their weights.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import step_name
from srpo_core.errors import ArtifactError
from srpo_core.runtime.shared_files import Location, local_copy
from srpo_core.training.state import (
    initialize_optimizer,
    load_optimizer_state,
    optimizer_state,
    trained_parameters,
)
from srpo_core.weights.shards import read_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS: Final = "weights"
AVERAGES: Final = "ema"
RESUME: Final = "resume"
OPTIMIZER: Final = f"{RESUME}/optimizer"
STATE: Final = "state.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its location, the steps done, and one row of metrics per step.

    evaluations: those of early stop, as plain values; digests: SHA-256 by file; resumable: whether it has the optimizer's state.
    """

    location: Location
    step: int
    metrics: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, Any]]
    digests: Mapping[str, str]
    resumable: bool

    def verify(self) -> None:
        """Check every file against its digest. Raises `ArtifactError`."""
        self._verify(self.digests)

    def verify_weights(self) -> None:
        """Check the files of the released weights against their digests, and no others. Raises `ArtifactError`."""
        self._verify(self.weights)

    @property
    def weights(self) -> Mapping[str, str]:
        """The digests of the files of the released weights."""
        return {name: digest for name, digest in self.digests.items() if name.startswith(f"{self.released}/")}

    @property
    def released(self) -> str:
        """The part that is sampled and exported: the averages if there are any, else the weights."""
        return AVERAGES if any(name.startswith(f"{AVERAGES}/") for name in self.digests) else WEIGHTS

    def _verify(self, digests: Mapping[str, str]) -> None:
        for name, digest in digests.items():
            if (self.location / name).sha256() != digest:
                raise ArtifactError(f"checkpoint {self.location} is damaged: {name} does not have its digest")


def step_location(root: Location, step: int) -> Location:
    """Return the location of the checkpoint after `step` steps below `root`."""
    return root / step_name(step)


def attempt_files(location: Location, attempt: str | None) -> Location:
    """Return the location of a checkpoint's files: below its own name, or that of the attempt that wrote them."""
    return location if attempt is None else Location(f"{location.uri}.{attempt}")


def open_checkpoint(location: Location, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint's state and require that all its files exist.

    verify: also check them against their digests.

    Raises:
        ArtifactError: a file is missing or was changed.
    """
    try:
        state = json.loads((location / STATE).read_text())
        files = attempt_files(location, state.get("attempt"))
        digests: dict[str, str] = state["sha256"]
        for_resume = {name for name in digests if name.startswith(f"{RESUME}/")}
        # `resume/` is deleted as a whole; if a kill interrupts that, the rest of it is not damage
        resumable = bool(for_resume) and for_resume <= set(files.files())
        kept = {name: digest for name, digest in digests.items() if resumable or name not in for_resume}
        require_files(files, kept)
        checkpoint = Checkpoint(files, state["step"], state["metrics"], state["evaluations"], kept, resumable)
        if verify:
            checkpoint.verify()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"checkpoint {location} is damaged: {error}") from error
    return checkpoint


def newest_checkpoint(root: Location, steps: Iterable[int]) -> Checkpoint | None:
    """Return the checkpoint to resume from: the last resumable one of the unbroken sequence, or None.

    steps: the steps after which there may be one, in ascending order. Only the returned checkpoint is verified; for
    the others it suffices that all files exist, because reading all of them may take hours, and the export verifies
    them too. A damaged checkpoint is logged; the steps after it, or after a gap, are trained again.
    """
    found: list[Checkpoint] = []
    for step in steps:
        location = step_location(root, step)
        if not location.exists():
            break
        try:
            checkpoint = open_checkpoint(location, verify=False)
        except ArtifactError as error:
            log.warning("%s; resuming from step %d", error, found[-1].step if found else 0)
            break
        found += [checkpoint] if checkpoint.resumable else []
    while found:
        newest = found.pop()
        try:
            newest.verify()
        except ArtifactError as error:
            log.warning("%s; resuming from step %d", error, found[-1].step if found else 0)
        else:
            return newest
    return None


def restore(
    checkpoint: Checkpoint,
    transformer: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    averages: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Load weights, optimizer state and averages, if any, from a checkpoint that any number of workers may have saved."""
    import torch

    with local_copy(checkpoint.location, checkpoint.digests) as directory:
        with torch.no_grad():
            read_shards(directory / WEIGHTS, trained_parameters(transformer))
            if averages:
                read_shards(directory / AVERAGES, averages)
        initialize_optimizer(optimizer)
        state = optimizer_state(transformer, optimizer)
        read_shards(directory / OPTIMIZER, state)
        load_optimizer_state(transformer, optimizer, state)


def require_files(location: Location, digests: Mapping[str, str]) -> None:
    """Require the files `digests` below a location. Raises `ArtifactError`."""
    if missing := sorted(digests.keys() - set(location.files())):
        raise ArtifactError(
            f"checkpoint {location} is damaged: {len(missing)} of {len(digests)} files are missing, the first is "
            f"{missing[0]}"
        )
