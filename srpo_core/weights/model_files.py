"""Say what is wrong with the files of a model's directory: each that a run opens, and what is missing."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from srpo_core.errors import DataError
from srpo_core.weights.headers import PICKLES, fault_of, read_json_object
from srpo_core.weights.safetensors_header import read_safetensors_header

PIPELINE: Final = "model_index.json"
INDEX_ENDING: Final = ".safetensors.index.json"
# Parts of a pipeline without weights, by what the name of their class contains.
WITHOUT_WEIGHTS: Final = ("Scheduler", "Tokenizer", "Extractor", "Processor")
# The stem of the weights' name, by the library of the part.
STEMS: Final = {"transformers": "model"}
DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
# Files that are no weights: configurations, indices and tokenizers.
TEXTS: Final = ("*.json", "*.model", "merges.txt", "vocab.txt")
# Types of weights that need a scale, or an own kernel.
QUANTIZED: Final = frozenset(
    {"I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4"}
)
_PAIR: Final = 2


def pipeline_faults(root: Path, parts: Collection[str] | None = None) -> Iterator[str]:
    """Yield what is wrong with a diffusers pipeline directory, one line for each file or part.

    parts: names of those that are read; None: all that model_index.json names.
    """
    index = root / PIPELINE
    if not index.is_file():
        yield f"{index} is missing: give the directory of a diffusers pipeline"
        return
    if fault := fault_of(index):
        yield fault
        return
    for part, entry in sorted(read_json_object(index).items()):
        if parts is not None and part not in parts:
            continue
        if isinstance(entry, list) and len(entry) == _PAIR and all(isinstance(one, str) for one in entry):
            library, kind = entry
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
    single, index = directory / f"{stem}.safetensors", directory / f"{stem}{INDEX_ENDING}"
    if single.is_file():
        yield from [fault] if (fault := fault_of(single)) else _quantized_faults([single])
    elif index.is_file():
        if fault_of(index) is None:  # a fault of its JSON was reported with the texts
            faults = list(index_faults(index))
            yield from faults or _quantized_faults(index.with_name(name) for name in read_index(index))
    elif pickles := [path for path in _files(directory) if path.suffix in PICKLES]:
        yield from files_faults(pickles)
    else:
        yield variant_fault(single) or f"{single} is missing: fetch it"


def _quantized_faults(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a fault if weights are quantized: libraries load them without their scales, and then compute noise."""
    for path in paths:
        for name, tensor in read_safetensors_header(path)[0].items():
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


def scorer_faults(directory: Path) -> Iterator[str]:
    """Yield what is wrong with the files of a reward or judge, one line for each; the scorer chooses among them."""
    files = _files(directory)
    names = {path.name for path in files}
    spare = {"pytorch_model.bin"} if "model.safetensors" in names else set()
    weights = [path for path in files if _is_weights(path) and path.name not in spare]
    if not weights:
        gguf = next((name for name in sorted(names) if name.endswith(".gguf")), None)
        found = f"only {gguf}, which no scorer reads" if gguf else "none"
        yield f"{directory} should have weights (.safetensors, or .pt as published), but has {found}: fetch them"
    if "config.json" in names and "model.safetensors" not in names:
        fault = variant_fault(directory / "model.safetensors")
        yield from [fault] if fault else []
    yield from files_faults([*weights, *(path for path in files if _is_text(path))])


def files_faults(paths: Iterable[Path]) -> Iterator[str]:
    """Yield what is wrong with each of these files."""
    yield from (fault for path in paths if (fault := fault_of(path)))


def index_faults(index: Path) -> Iterator[str]:
    """Yield what is wrong with an index of shards and with its shards."""
    try:
        shards = read_index(index)
    except DataError as error:
        yield str(error)
        return
    for name, tensors in shards.items():
        path = index.with_name(name)
        if fault := fault_of(path):
            yield fault
        # transformers' index may name a tensor whose weights are another's
        elif index.name.startswith(DIFFUSERS_STEM) and (
            odd := sorted(tensors ^ read_safetensors_header(path)[0].keys())
        ):
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
    for tensor, name in weights.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(
                f"{path}: {tensor} should be in a .safetensors file beside it, but is in {name!r}"
            )
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
