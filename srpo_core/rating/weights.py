"""The digest of the weights with which a model generates: by it, ratings belong to a model whatever it is called."""

import hashlib
from pathlib import Path

from srpo_core.config import ModelSettings
from srpo_core.models import files_to_load
from srpo_core.runtime.digests import known_digest


def weights_digest(model: ModelSettings, transformer: Path | None) -> str:
    """Return a digest of the weights with which a model generates; None: the base's own.

    Raises:
        ArtifactError: the base's directory does not exist.
    """
    root, lines = Path(model.path), []
    for file in files_to_load(model, transformer):
        own = transformer is not None and file.is_relative_to(transformer)
        name = f"own/{file.relative_to(transformer)}" if own and transformer else str(file.relative_to(root))
        lines.append(f"{name} {known_digest(file)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
