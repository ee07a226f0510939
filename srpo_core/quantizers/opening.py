"""Open a FLUX transformer on disk: which files it has, and what is given in place of one."""

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import DataError
from srpo_core.quantizers.chunks import ITEM_BYTES
from srpo_core.quantizers.decoding import FLOAT8, block_of
from srpo_core.quantizers.flux_checkpoint import CONFIG_METADATA, GGUF_CONFIG, FluxCheckpoint
from srpo_core.quantizers.scales import kind_of_source, require_known_formats, with_scales
from srpo_core.quantizers.stored import Stored
from srpo_core.weights.files import CONFIG, WEIGHTS
from srpo_core.weights.gguf_header import read_gguf_header
from srpo_core.weights.given_path import what_is_missing
from srpo_core.weights.headers import kind_of, read_json_object, require_content
from srpo_core.weights.model_files import SHARD, index_faults, read_index, variant_fault
from srpo_core.weights.safetensors_header import Located, read_safetensors_header

INDEX: Final = f"{WEIGHTS}.index.json"
TRANSFORMER: Final = "transformer"
FORMS: Final = "give a diffusers directory, a .safetensors file or a .gguf file"
GGUF_KIND: Final = "a GGUF file"
_KNOWN: Final = ", ".join((*ITEM_BYTES, *FLOAT8))


def open_flux(path: Path) -> FluxCheckpoint:
    """Open a FLUX transformer: a diffusers directory (of the transformer or the pipeline), a safetensors or a GGUF file.

    A file may have either naming, below a prefix such as `model.diffusion_model.`; tensors outside the prefix are
    ignored. Weights in float8, with or without scales, and in GGUF's types are decoded as they are read.

    Raises:
        DataError: the checkpoint is missing, damaged, not FLUX, or of a type that is not read; or its names or shapes are
            not those of its config.json.
    """
    files, config = checkpoint_files(path)
    gguf = kind_of(files[0]) == GGUF_KIND
    tensors: dict[str, Stored] = {}
    for file in files:
        found, own_config = _map_gguf(file) if gguf else _map_safetensors(file)
        if twice := sorted(tensors.keys() & found):
            raise DataError(f"{path}: {twice[0]} is in two files: fetch them again")
        tensors |= found
        if config is None and own_config is not None:
            config = _config_of(file, own_config)
    transformer = with_scales(_without_prefix(tensors, path), str(path))
    for name, stored in transformer.items():
        if stored.block_bytes == 0:
            known = "F32, F16, BF16 and those types of GGUF that gguf-py decodes" if gguf else _KNOWN
            raise DataError(
                f"{path}: {name} is stored as {stored.dtype}; known are {known}: start from the file in full precision"
            )
    return FluxCheckpoint(files, transformer, config, kind_of_source(transformer.values(), gguf=gguf))


def checkpoint_files(path: Path) -> tuple[Sequence[Path], dict[str, Any] | None]:
    """Return the safetensors files of a checkpoint, and its config.json if it has one.

    Raises:
        DataError: there are none; the message says what `path` is instead, and what to give.
    """
    if missing := what_is_missing(str(path)):
        raise DataError(f"{missing}; a FLUX checkpoint is needed: {FORMS}")
    if path.is_file():
        _require_single_file(path)
        _require_whole(path)
        beside = path.with_name(CONFIG)
        is_variant = path.name.startswith(f"{Path(WEIGHTS).stem}.") and beside.is_file()
        return [path], read_json_object(beside) if is_variant else None
    directory = path / TRANSFORMER if (path / "model_index.json").is_file() else path
    index, config = directory / INDEX, directory / CONFIG
    if index.is_file():
        files = [directory / name for name in read_index(index)]
        for file in files:
            _require_safetensors(file)
        if fault := next(index_faults(index), None):
            raise DataError(fault)
    else:
        files = [directory / WEIGHTS]
        _require_weights(path, files[0])
    return files, read_json_object(config) if config.is_file() else None


def _require_weights(path: Path, file: Path) -> None:
    """Raise `DataError` if a directory has no weights under the usual name, and say what it has instead."""
    if file.is_file():
        _require_safetensors(file)
        return
    if not file.parent.is_dir():
        raise DataError(f"{path} is no FLUX checkpoint ({file.parent.name}/ is missing): {FORMS}")
    if fault := variant_fault(file):
        raise DataError(f"{fault}; a single file can be given by its own path")
    if any((shard := SHARD.search(other.name)) and int(shard[1]) > 1 for other in file.parent.iterdir()):
        raise DataError(
            f"{path} is no FLUX checkpoint: it has shards, but not their index {INDEX}: fetch that, too"
        )
    others = sorted(
        other.name
        for other in file.parent.iterdir()
        if other.suffix in (".safetensors", ".gguf", ".pt", ".bin")
    )
    found = f", but {others[0]} is there: give that file" if others else f": {FORMS}"
    raise DataError(f"{path} is no FLUX checkpoint ({file.name} is missing){found}")


def _require_single_file(path: Path) -> None:
    """Raise `DataError` unless a file is a safetensors or GGUF file, and say what to do with what it is."""
    require_content(path)
    kind = kind_of(path)
    if kind != GGUF_KIND:
        _require_safetensors(path, kind)


def _require_whole(path: Path) -> None:
    """Raise `DataError` if a file is one of several shards by its name."""
    shard = SHARD.search(path.name)
    if shard is None or int(shard[1]) == 1:
        return
    if kind_of(path) == GGUF_KIND:
        raise DataError(
            f"{path}: this is one shard of a checkpoint, and GGUF is read as one file: join the shards with "
            f"llama-gguf-split --merge {path.name} OUT.gguf, and give that file"
        )
    raise DataError(f"{path}: this is one shard of a checkpoint: give the directory, {path.parent}")


def _require_safetensors(path: Path, kind: str | None = None) -> None:
    """Raise `DataError` unless a file is a safetensors file, and say what to do with what it is."""
    require_content(path)
    kind = kind or kind_of(path)
    if kind == "a pickle of PyTorch":
        raise DataError(
            f"{path} is {kind}, which is not read because a pickle can run code: convert it once, in Python: "
            f"safetensors.torch.save_file(torch.load('{path.name}', map_location='cpu', weights_only=True), "
            f"'{path.stem}.safetensors'), and give the new file"
        )
    if kind != "a safetensors file":
        raise DataError(f"{path} is no safetensors file, but {kind}: {FORMS}")


def _config_of(file: Path, text: str) -> dict[str, Any]:
    """Parse the config.json that our own files have in their metadata. Raises `DataError`."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise DataError(
            f"{file} is damaged ({CONFIG_METADATA} in its metadata is no JSON object): fetch it again"
        )
    return config


def _map_safetensors(path: Path) -> tuple[dict[str, Stored], str | None]:
    """Map the tensors of a safetensors file; returns them with the config.json in the file's metadata, if it has one."""
    located, metadata = read_safetensors_header(path)
    require_known_formats(metadata, str(path))
    return _mapped(path, located, gguf=False), metadata.get(CONFIG_METADATA)


def _map_gguf(path: Path) -> tuple[dict[str, Stored], str | None]:
    """Map the tensors of a GGUF file; returns them with the config.json in the file's values, if it has one."""
    header = read_gguf_header(path)
    shaped = {}
    for name, one in header.tensors.items():
        # ComfyUI-GGUF reshapes what its blocks do not divide
        shape = header.values.get(f"comfy.gguf.orig_shape.{name}", one.shape)
        if (
            not isinstance(shape, list | tuple)
            or not all(type(length) is int for length in shape)
            or prod(shape) != prod(one.shape)
        ):
            raise DataError(
                f"{path}: {name} of shape {list(one.shape)} cannot have the original shape {shape}: fetch it again"
            )
        shaped[name] = replace(one, shape=tuple(shape))
    config = header.values.get(GGUF_CONFIG)
    return _mapped(path, shaped, gguf=True), config if isinstance(config, str) else None


def _mapped(path: Path, located: Mapping[str, Located], *, gguf: bool) -> dict[str, Stored]:
    """Map tensors; a type that is not read has blocks of 0 bytes, because it may be outside the transformer."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, one in located.items():
        block, block_bytes = block_of(one.dtype, gguf=gguf) or (1, 0)
        if one.shape and prod(one.shape[1:]) % block:
            raise DataError(
                f"{path}: the rows of {name} are no multiple of its blocks: start from the file in full precision"
            )
        tensors[name] = Stored(mapped, one.dtype, one.shape, one.start, block, block_bytes)
    return tensors


def _without_prefix(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    """Return the transformer's tensors without their prefix."""
    for first in ("img_in.weight", "x_embedder.weight"):
        prefixes = {name.removesuffix(first) for name in tensors if name.endswith(first)}
        for prefix in sorted(prefixes, key=len):
            if not prefix or prefix.endswith("."):
                return {
                    name.removeprefix(prefix): stored
                    for name, stored in tensors.items()
                    if name.startswith(prefix)
                }
    some = ", ".join(sorted(tensors)[:3]) or "nothing"
    raise DataError(
        f"{path} is no FLUX transformer: neither img_in.weight nor x_embedder.weight is in it, but {some}"
    )
