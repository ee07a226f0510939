"""Load the parts of a diffusers pipeline directory by the classes of a registry entry."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from srpo_core.config import ModelSettings
from srpo_core.errors import ArtifactError
from srpo_core.models.architecture import Architecture, BaseEntry
from srpo_core.models.base import CAST_BY_AUTOCAST, Base
from srpo_core.protocols import Condition
from srpo_core.weights.given_path import what_is_missing
from srpo_core.weights.model_files import PIPELINE, model_faults, pipeline_faults
from srpo_core.weights.shards import read_shards

# the parts of a pipeline beside the transformer that generate images from embeddings
OTHERS: Final = ("vae", "scheduler")


def load_base(entry: BaseEntry, settings: ModelSettings, *, empty: bool = False, half: bool = False) -> Base:
    """Load transformer, VAE and scheduler of a pipeline directory.

    empty: leave the transformer without weights on the meta device; half: see `load_transformer`.

    Raises:
        ArtifactError: the directory is missing, incomplete or damaged.
    """
    root = existing_pipeline(settings.path, OTHERS if empty else ("transformer", *OTHERS))
    vae = load_vae(entry, settings)
    with reading(root):
        scheduler = diffusers_class(entry.scheduler).from_pretrained(
            root, subfolder="scheduler", local_files_only=True
        )
    directory = root / "transformer"
    transformer = (
        empty_transformer(entry, directory) if empty else load_transformer(entry, directory, half=half)
    )
    return _assembled(entry, settings, transformer, vae, scheduler)


def load_vae(entry: BaseEntry, settings: ModelSettings) -> Any:
    """Load the VAE of a pipeline directory. Raises `ArtifactError` as `load_base` does."""
    root = existing_pipeline(settings.path, ["vae"])
    with reading(root):
        return diffusers_class(entry.vae).from_pretrained(root, subfolder="vae", local_files_only=True)


def empty_vae(entry: BaseEntry, settings: ModelSettings) -> Any:
    """Create the VAE of a pipeline directory's configuration on the meta device. Raises `ArtifactError`."""
    kind, root = diffusers_class(entry.vae), existing_pipeline(settings.path, ["vae"])
    with reading(root), torch.device("meta"):
        return kind.from_config(kind.load_config(root, subfolder="vae", local_files_only=True))


def load_transformer(entry: BaseEntry, directory: Path, *, half: bool = False) -> Any:
    """Load a transformer from a diffusers directory, in float32.

    half: read the matrices of linear layers and convolutions, which autocast computes in bfloat16, in bfloat16 at once.
    Under autocast the outputs are those of float32 weights, bit by bit.

    Raises:
        ArtifactError: the directory is missing or damaged.
    """
    _require_no_fault(model_faults(directory))
    with reading(directory):
        transformer = diffusers_class(entry.transformer).from_pretrained(
            directory, dtype=torch.bfloat16 if half else torch.float32, local_files_only=True
        )
    if half:
        _read_in_float32(transformer, directory)
    return transformer


def _read_in_float32(transformer: Any, directory: Path) -> None:
    """Read those parameters again that autocast leaves in the type of the weights, such as a norm's."""
    state = {}
    for name, module in transformer.named_modules():
        if not isinstance(module, CAST_BY_AUTOCAST):
            for own, parameter in module.named_parameters(prefix=name, recurse=False):
                parameter.data = torch.empty_like(parameter, dtype=torch.float32)
                state[own] = parameter.data
    if state:
        read_shards(directory, state)


def empty_transformer(entry: BaseEntry, directory: Path) -> Any:
    """Create the transformer of a diffusers directory's configuration on the meta device.

    Raises:
        ArtifactError: the directory is missing or its configuration damaged.
    """
    kind = diffusers_class(entry.transformer)
    with reading(directory), torch.device("meta"):
        return kind.from_config(kind.load_config(directory, local_files_only=True))


def load_text_encoders(entry: BaseEntry, settings: ModelSettings) -> Any:
    """Load the pipeline without transformer and VAE, in float32. Raises `ArtifactError`."""
    root = existing_pipeline(settings.path, needed=entry.parts)
    with reading(root):
        return diffusers_class(entry.pipeline).from_pretrained(
            root, transformer=None, vae=None, dtype=torch.float32, local_files_only=True
        )


def meta_base(
    entry: BaseEntry, settings: ModelSettings, *, transformer: Mapping[str, Any], vae: Mapping[str, Any]
) -> tuple[Base, Condition]:
    """Create a base, and a condition of one prompt, on the meta device from the configurations of its parts."""
    with torch.device("meta"):
        model = diffusers_class(entry.transformer).from_config(transformer)
        autoencoder = diffusers_class(entry.vae).from_config(vae)
        shapes = entry.condition_shapes(model.config, settings.max_sequence_length)
        condition = Condition({name: torch.empty(shape) for name, shape in shapes.items()})
    return _assembled(entry, settings, model, autoencoder, None), condition


def _assembled(entry: BaseEntry, settings: ModelSettings, transformer: Any, vae: Any, scheduler: Any) -> Base:
    def of_size(height: int, width: int) -> Architecture:
        return entry.architecture(vae, scheduler, height=height, width=width)

    return Base(of_size(settings.height, settings.width), transformer, vae, of_size=of_size)


def existing_pipeline(path: str, parts: Collection[str] | None = None, needed: Collection[str] = ()) -> Path:
    """Return the pipeline's directory.

    parts: names of the parts that are read, which are checked; None: all. A copy for other hosts has only those.
    needed: those that its model_index.json must name.

    Raises:
        ArtifactError: it does not exist, or a file in it is missing, cut, or of another kind than its name says.
    """
    root = Path(path)
    if missing := what_is_missing(path):
        raise ArtifactError(f"model.path: {missing}")
    if not (root / PIPELINE).is_file():
        raise ArtifactError(
            f"model.path {path}: no model_index.json there; a diffusers pipeline directory is needed"
        )
    _require_no_fault(pipeline_faults(root, parts, needed))
    return root


def _require_no_fault(faults: Iterator[str]) -> None:
    """Raise `ArtifactError` with the first of the faults."""
    if fault := next(faults, None):
        raise ArtifactError(fault)


def diffusers_class(name: str) -> Any:
    """Return the diffusers class called `name`."""
    import diffusers

    return getattr(diffusers, name)


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Raise one `ArtifactError` for whatever libraries raise on missing or damaged weights."""
    from diffusers.utils import logging
    from safetensors import SafetensorError

    logging.disable_progress_bar()  # one per part of the pipeline, each visible for a moment
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory} cannot be read as model weights: {cause}") from error
