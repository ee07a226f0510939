"""Training state on disk: atomic, checked by digests, without pickles.

A checkpoint is a directory: `transformer/` (what diffusers' `save_pretrained` writes),
`optimizer.safetensors` (AdamW's moments by parameter name) and `state.json` (step, metrics so far,
SHA-256 of the other files). It appears under its name only when it is complete.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_core.artifacts import sha256
from srpo_core.errors import ArtifactError

if TYPE_CHECKING:
    import torch

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
TRANSFORMER = "transformer"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its directory, the steps done, and one row of metrics per step."""

    directory: Path
    step: int
    metrics: Sequence[Mapping[str, float]]

    @property
    def transformer(self) -> Path:
        """The diffusers directory of the weights."""
        return self.directory / TRANSFORMER


def save_checkpoint(
    root: Path,
    step: int,
    transformer: Any,
    optimizer: "torch.optim.Optimizer",
    metrics: Sequence[Mapping[str, float]],
) -> Checkpoint:
    """Write the checkpoint after `step` steps below `root`; it replaces one of the same step."""
    from safetensors.torch import save_file

    directory = checkpoint_directory(root, step)
    partial = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    transformer.save_pretrained(partial / TRANSFORMER)
    save_file(_moments(transformer, optimizer), partial / OPTIMIZER)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    digests = {str(path.relative_to(partial)): sha256(path) for path in files}
    state = {"step": step, "metrics": list(metrics), "sha256": digests}
    (partial / STATE).write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    return Checkpoint(directory, step, metrics)


def newest_checkpoint(root: Path, *, every: int) -> Checkpoint | None:
    """The checkpoint to go on from: the last of the unbroken row of intact ones at every `every` steps, or None.

    A damaged one is named; what lies behind it or behind a gap is trained again.
    """
    newest = None
    for step in count(every, every):
        directory = checkpoint_directory(root, step)
        if not directory.exists():
            return newest
        try:
            newest = open_checkpoint(directory)
        except ArtifactError as error:
            log.warning("%s; going on from step %d", error, newest.step if newest else 0)
            return newest
    raise AssertionError("an endless count ended")


def checkpoint_directory(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies below `root`."""
    return root / f"step-{step:06d}"


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint's state and verify every file against its digest.

    Raises:
        ArtifactError: a file is missing or altered.
    """
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if sha256(directory / name) != digest:
                raise ArtifactError(f"checkpoint {directory} is damaged: {name} does not have its digest")
        return Checkpoint(directory, state["step"], state["metrics"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"checkpoint {directory} is damaged: {error}") from error


def load_optimizer(
    checkpoint: Checkpoint, transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer"
) -> None:
    """Put the saved moments back into an AdamW over `transformer`'s parameters."""
    from safetensors.torch import load_file

    tensors = load_file(checkpoint.directory / OPTIMIZER)
    for name, parameter in transformer.named_parameters():
        if f"{name}:step" in tensors:
            moments = {moment: tensors[f"{name}:{moment}"] for moment in MOMENTS}
            # AdamW counts its steps on the CPU, unless all is one kernel on the device
            counts_on_cpu = not optimizer.param_groups[0]["fused"]
            optimizer.state[parameter] = {
                moment: tensor if moment == "step" and counts_on_cpu else tensor.to(parameter.device)
                for moment, tensor in moments.items()
            }


def _moments(transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> dict[str, "torch.Tensor"]:
    return {
        f"{name}:{moment}": optimizer.state[parameter][moment].contiguous()
        for name, parameter in transformer.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }
