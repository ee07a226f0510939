"""The digest of the weights that a file was converted from."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from srpo_core.artifacts import sha256
from srpo_core.quantizers.opening import checkpoint_files
from srpo_core.weights.adapters import adapters_file


def checkpoint_digest(directory: Path) -> str:
    """Return the `source_digest` of a checkpoint's weights, or the SHA-256 of its file of adapters.

    The base of adapters is no part of it: dvc.lock has the digest of the base, and names the model.
    """
    adapters = adapters_file(directory)
    return sha256(adapters) if adapters else source_digest(checkpoint_files(directory)[0])


def source_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a checkpoint's file; of several, that of the lines that `sha256sum` prints for them.

    files: in the order of their names, as `FluxCheckpoint.files` has them.
    """
    if len(files) == 1:
        return sha256(files[0])
    lines = (f"{sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
