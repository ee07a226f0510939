"""Reading a scorer's files. Every fault becomes an error of one line with the file and the next step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from srpo_core.artifacts import require
from srpo_core.errors import ArtifactError, DataError
from srpo_core.weights.headers import fault_of, read_json_object
from srpo_core.weights.models_lock import require_locked


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a JSON object. Raises `ArtifactError` if it is missing or damaged."""
    try:
        return read_json_object(require(path))
    except DataError as error:
        raise ArtifactError(str(error)) from None


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict. Raises `ArtifactError` if it is missing, damaged or differs from models.lock."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require_intact(path)
    try:
        tensors: Mapping[str, Tensor] = load_file(require(path))
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None
    return tensors


def read_pickle(path: Path) -> Mapping[str, Tensor]:
    """Read a pickled {"state_dict": ...}, or a bare state dict, without executing code from the file.

    The tensors are memory-mapped, so that loading needs the memory of one model, not of two.
    Raises `ArtifactError` if the file is missing, damaged or differs from models.lock.
    """
    from pickle import UnpicklingError

    import torch

    _require_intact(path)
    try:
        content = torch.load(require(path), map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise damaged(path, error) from None
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if tensors is None and isinstance(content, dict) and content:
        tensors = content if all(isinstance(value, Tensor) for value in content.values()) else None
    if not isinstance(tensors, dict):
        raise damaged(path, "it has no 'state_dict'")
    return tensors


def _require_intact(path: Path) -> None:
    """Raise `ArtifactError` if a file is missing, its header is damaged, or it differs from models.lock."""
    if fault := fault_of(require(path)):
        raise ArtifactError(fault)
    require_locked(path)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load `tensors`, read from `path`, into `module`; all names and shapes must match."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise damaged(path, error) from None


def damaged(path: Path, reason: object) -> ArtifactError:
    """Make the error for a file that cannot be used; `reason` is shortened to one line."""
    line = " ".join(str(reason).split())[:200]
    return ArtifactError(f"{path} is damaged or of another model ({line}): restore it from its source")
