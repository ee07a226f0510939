"""Say what is wrong with the files of a model's directory: each that a run opens, and what is missing."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.errors import DataError, SrpoError
from srpo_core.weights.headers import PICKLES, fault_of, read_json_object, read_safetensors

PIPELINE: Final = "model_index.json"
INDEX_ENDING: Final = ".index.json"
SHARD: Final = re.compile(r"-\d{5}-of-(\d{5})\.[a-z]+$")
# Parts of a pipeline without weights, by what the name of their class contains.
WITHOUT_WEIGHTS: Final = ("Scheduler", "Tokenizer", "Extractor", "Processor")
# The stem of the weights' name, by the library of the part.
STEMS: Final = {"transformers": "model"}
DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
# The files that each library looks for, in its order, by the stem of the first.
LOOKED_FOR: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "model": (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        ),
        DIFFUSERS_STEM: (
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.bin",
        ),
    }
)
# Files that are no weights: configurations, indices and tokenizers.
TEXTS: Final = ("*.json", "*.model", "merges.txt", "vocab.txt")
# Of the JSON texts those that every library reads as an object.
OBJECTS: Final = (
    "*config.json",
    "*index.json",
    "tokenizer.json",
    "vocab.json",
    "*_map.json",
    "added_tokens.json",
)
# Types of weights that need a scale or a kernel of their own.
QUANTIZED: Final = frozenset(
    {"I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4"}
)
_PAIR: Final = 2


def pipeline_faults(
    root: Path, parts: Collection[str] | None = None, needed: Collection[str] = ()
) -> Iterator[str]:
    """Yield what is wrong with a diffusers pipeline directory, one line for each file or part.

    parts: names of those that are read; None: all that model_index.json names. needed: those that it must name.
    """
    index = root / PIPELINE
    if not index.is_file():
        yield f"{index} is missing: give the directory of a diffusers pipeline"
        return
    if fault := file_fault(index):
        yield fault
        return
    named = {
        part: entry
        for part, entry in sorted(read_json_object(index).items())
        if isinstance(entry, list) and len(entry) == _PAIR and all(isinstance(one, str) for one in entry)
    }
    if lacking := sorted(set(needed) - named.keys()):
        yield f"{index} does not name {', '.join(lacking)}, which the base has: fetch the whole pipeline"
    for part, (library, kind) in named.items():
        if parts is None or part in parts:
            yield from _part_faults(root / part, kind, STEMS.get(library, DIFFUSERS_STEM))


def _part_faults(directory: Path, kind: str, stem: str) -> Iterator[str]:
    if not directory.is_dir():
        yield f"{directory} is missing, which {PIPELINE} names: fetch the whole pipeline"
        return
    if any(word in kind for word in WITHOUT_WEIGHTS):
        yield from _text_faults(directory)
    else:
        yield from model_faults(directory, stem)


def _text_faults(directory: Path) -> Iterator[str]:
    yield from files_faults(path for path in _files(directory) if _is_text(path))


def model_faults(directory: Path, stem: str = DIFFUSERS_STEM) -> Iterator[str]:
    """Yield what is wrong with the directory of one model: config.json, and one file of weights, or shards and index."""
    if not directory.is_dir():
        yield f"{directory} is missing: check the path"
        return
    yield from _text_faults(directory)
    config = directory / "config.json"
    if not config.is_file():
        yield f"{config} is missing: fetch it"
    found = next((directory / name for name in LOOKED_FOR[stem] if (directory / name).is_file()), None)
    if found is None:
        yield missing_weights(directory / f"{stem}.safetensors")
    elif found.name.endswith(INDEX_ENDING):
        if file_fault(found) is None:  # a fault of its JSON was reported with the texts
            faults = list(index_faults(found))
            yield from faults or _quantized_faults(found.with_name(name) for name in read_index(found))
    else:
        yield from [fault] if (fault := fault_of(found)) else _quantized_faults([found])


def missing_weights(single: Path) -> str:
    """Return what to do if a directory lacks a file of weights: it may have a variant, or shards without their index."""
    if fault := variant_fault(single):
        return fault
    index = single.with_name(f"{single.name}{INDEX_ENDING}")
    if any(SHARD.search(path.name) for path in _files(single.parent)) and not index.is_file():
        return f"{index} is missing, but shards are there: fetch it, too"
    return f"{single} is missing: fetch it"


def _quantized_faults(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a fault if weights are quantized: libraries load them without their scales, and then compute noise."""
    for path in paths:
        tensors = read_safetensors(path) if path.suffix == ".safetensors" else {}
        for name, tensor in tensors.items():
            if tensor.dtype in QUANTIZED:
                yield (
                    f"{path}: {name} is stored as {tensor.dtype}, and a run needs whole floats (F32, F16 or BF16): give those, "
                    "or decode float8 with 'srpo quantize SOURCE --format bf16 --out DIR'"
                )
                return


def variant_fault(single: Path) -> str | None:
    """Return what to do if a directory has only a variant of a weights file; None if it has none."""
    stem = single.name.removesuffix(".safetensors")
    variants = [
        path.name for path in _files(single.parent) if path.match(f"{stem}.*.safetensors*") and path != single
    ]
    if not variants:
        return None
    return (
        f"{single} is missing and {variants[0]} is a variant of it, which is read only under the usual name: rename its "
        "files so that they have no variant in their names, or fetch the ones without"
    )


def scorer_faults(
    directory: Path, chosen: Callable[[Path], tuple[Path | None, Path]] | None = None
) -> Iterator[str]:
    """Yield what is wrong with the files of a reward or judge, one line for each.

    chosen: returns the configuration, if there is one, and the weights that the scorer reads of a directory; None: it is
    not known which, so all that may be read are checked.
    """
    files = _files(directory)
    names = {path.name for path in files}
    spare = {"pytorch_model.bin"} if "model.safetensors" in names else set()
    weights = [path for path in files if _is_weights(path) and path.name not in spare]
    if not weights:
        gguf = next((name for name in sorted(names) if name.endswith(".gguf")), None)
        found = f"only {gguf}, which no scorer reads" if gguf else "none"
        yield f"{directory} should have weights (.safetensors, or .pt as published), but has {found}: fetch them"
    if chosen is not None:
        yield from _chosen_faults(directory, chosen, has_weights=bool(weights))
        return
    if "config.json" in names and "model.safetensors" not in names:
        fault = variant_fault(directory / "model.safetensors")
        yield from [fault] if fault else []
    faults = list(files_faults([*weights, *(path for path in files if _is_text(path))]))
    for index in files:
        if index.name.endswith(INDEX_ENDING) and file_fault(index) is None:
            faults.extend(index_faults(index))
    yield from dict.fromkeys(faults)  # a fault of a shard is found twice


def _chosen_faults(
    directory: Path, chosen: Callable[[Path], tuple[Path | None, Path]], *, has_weights: bool
) -> Iterator[str]:
    try:
        config, weights = chosen(directory)
    except SrpoError as error:
        if has_weights:  # else it was said that there are none
            yield str(error)
        return
    if config is not None and (fault := _object_fault(config)):
        yield fault
    if weights.is_file():
        yield from files_faults([weights])
    elif has_weights:
        yield missing_weights(weights)


def choice_faults(
    directory: Path, chosen: Callable[[Path], tuple[Path | None, Path]] | None
) -> Iterator[str]:
    """Yield why a scorer cannot choose its files among those of a directory, or which it lacks; none is opened."""
    if chosen is None:
        return
    try:
        files = chosen(directory)
    except SrpoError as error:
        yield str(error)
        return
    yield from (f"{file} is missing: fetch it" for file in files if file is not None and not file.is_file())


def files_faults(paths: Iterable[Path]) -> Iterator[str]:
    """Yield what is wrong with each of these files."""
    yield from (fault for path in paths if (fault := file_fault(path)))


def file_fault(path: Path) -> str | None:
    """Return what is wrong with a file, as `fault_of` does; JSON that libraries read as an object must be one."""
    if any(path.match(pattern) for pattern in OBJECTS):
        return _object_fault(path)
    return fault_of(path)


def _object_fault(path: Path) -> str | None:
    try:
        read_json_object(path)
    except DataError as error:
        return str(error)
    return None


def index_faults(index: Path) -> Iterator[str]:
    """Yield what is wrong with an index of shards and with its shards."""
    try:
        shards = read_index(index)
    except DataError as error:
        yield str(error)
        return
    for name, tensors in shards.items():
        path = index.with_name(name)
        if path.suffix != ".safetensors":
            yield from files_faults([path])
            continue
        try:
            found = read_safetensors(path).keys()
        except DataError as error:
            yield str(error)
            continue
        # transformers' index may name a tensor whose weights are another's
        if index.name.startswith(DIFFUSERS_STEM) and (odd := sorted(tensors ^ found)):
            yield f"{path} and {index.name} do not agree about the tensor {odd[0]}: fetch both again"


def read_index(path: Path) -> Mapping[str, set[str]]:
    """Read an index of shards: the names of the tensors of each shard, by the shard's name.

    Raises:
        DataError: it is damaged, or a shard is not beside it.
    """
    weights = read_json_object(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise DataError(f"{path} has no weight_map from tensors to files: fetch it again")
    shards: dict[str, set[str]] = {}
    ending = Path(path.name.removesuffix(INDEX_ENDING)).suffix  # .safetensors or .bin
    for tensor, name in weights.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(ending):
            raise DataError(f"{path}: {tensor} should be in a {ending} file beside it, but is in {name!r}")
        shards.setdefault(name, set()).add(tensor)
    missing = sorted(name for name in shards if not path.with_name(name).is_file())
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(shards)} files of {path} are missing, first {missing[0]}: fetch them"
        )
    return dict(sorted(shards.items()))


def _is_text(path: Path) -> bool:
    return any(path.match(pattern) for pattern in TEXTS)


def _is_weights(path: Path) -> bool:
    """Whether a file in a scorer's directory is weights by its name; other programs' files may end in .bin, too."""
    if path.suffix == ".bin":
        return "model" in path.name
    return path.suffix == ".safetensors" or path.suffix in PICKLES


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
