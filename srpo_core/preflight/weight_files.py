"""Check the weights that a run reads before it starts: every file's header is opened."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from srpo_core.config import Settings
from srpo_core.errors import DataError
from srpo_core.models import base_entry
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.scorers import SCORERS, ScorerFiles
from srpo_core.weights.given_path import file_in_place_of_directory, what_is_missing
from srpo_core.weights.model_files import (
    INDEX_ENDING,
    choice_faults,
    file_fault,
    files_faults,
    index_faults,
    pipeline_faults,
    read_index,
    scorer_faults,
)
from srpo_core.weights.models_lock import LOCK, Locked, missing_files, read_lock
from srpo_core.workspace.inputs import input_paths

PIPELINE_NEEDED: Final = (
    "the directory of a diffusers pipeline (model_index.json, transformer/, vae/ and so on; "
    "'srpo quantize FILE --format bf16 --out DIR' writes a transformer in that form)"
)
SCORER_NEEDED: Final = "the directory with a scorer's weights and configuration"


def weight_paths(settings: Settings) -> list[str]:
    """Return the directories of weights that a run with these settings reads, each once."""
    return list(dict.fromkeys(_keys(settings).values()))


def _keys(settings: Settings) -> dict[str, str]:
    """Return the path of weights of each key."""
    return {key: path for key, path in input_paths(settings).items() if key != "ingest.source"}


def check_weights(settings: Settings) -> Iterator[tuple[bool, str]]:
    """Yield a finding for each directory of weights, and one for each of its files that cannot be read."""
    locked = _locked(Path())
    for path in weight_paths(settings):
        entry = locked.get(path)
        faults = list(_faults(settings, path, entry))
        yield from ((False, fault) for fault in faults)
        if not faults:
            yield True, path if entry is None else f"{path}: {_complete(entry)}"


def require_readable_weights(settings: Settings, root: Path = Path()) -> None:
    """Open the header of every file of weights that a run reads, if a stage of its dvc.yaml reads the base.

    root: directory of the run; paths in the settings are relative to it. A directory that is not here yet, but that a
    `.dvc` file beside it names, is left to DVC.

    Raises:
        DataError: a file is missing, or it is no intact file of its kind; the message names the first, and how many there
            are.
    """
    base, values = Path(settings.model.path), settings.model_dump()
    if not any(base in stage.inputs(values) for stage in read_stages(root).values()):
        return
    locked = _locked(root)
    keys = {path: key for key, path in reversed(_keys(settings).items())}  # the first key of each path
    faults = [
        f"{keys[path]}: {fault}"
        for path in weight_paths(settings)
        for fault in _faults(settings, path, locked.get(path), root)
    ]
    if faults:
        more = f" ({len(faults) - 1} more: 'srpo doctor' lists them)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}")


def _locked(root: Path) -> Mapping[str, Locked]:
    return read_lock(root / LOCK) if (root / LOCK).exists() else {}


def _faults(settings: Settings, path: str, entry: Locked | None, root: Path = Path()) -> Iterator[str]:
    """Yield what is wrong with a directory of weights."""
    directory = root / path
    is_base = path == settings.model.path
    if entry is not None:
        found = list(_locked_faults(path, directory, entry))
        if not found and not is_base:
            found = [
                fault for chosen in _choices(settings, path) for fault in choice_faults(directory, chosen)
            ]
        yield from dict.fromkeys(found)
        return
    if not directory.exists():
        if directory.with_name(f"{directory.name}.dvc").is_file():
            return
        yield what_is_missing(path) or f"{directory} is missing: check the path"
    elif fault := file_in_place_of_directory(directory, PIPELINE_NEEDED if is_base else SCORER_NEEDED):
        yield fault
    elif is_base:
        yield from pipeline_faults(directory, needed=base_entry(settings.model).parts)
    else:
        faults = (scorer_faults(directory, chosen) for chosen in _choices(settings, path))
        yield from dict.fromkeys(fault for found in faults for fault in found)


def _choices(settings: Settings, path: str) -> Iterator[Callable[[Path], ScorerFiles] | None]:
    """Yield how each scorer with this path chooses its files; None if that is not known."""
    scorers = [*settings.rewards, settings.select_judge, settings.judge, *settings.evaluate.scorers.values()]
    for name in dict.fromkeys(scorer.scorer for scorer in scorers if scorer.path == path):
        yield SCORERS[name].files if name in SCORERS else None  # an unknown name is a fault of the settings


def _locked_faults(path: str, directory: Path, entry: Locked) -> Iterator[str]:
    gone = missing_files(str(directory), entry)
    if gone:
        yield (
            f"{path}: {len(gone)} of {len(entry.files)} files are missing, first {gone[0]}: run 'srpo fetch' with the "
            "same --profile"
        )
    there = {directory / name for name in entry.files if name not in gone}
    indices = [
        file for file in sorted(there) if file.name.endswith(INDEX_ENDING) and file_fault(file) is None
    ]
    if not gone:  # the shards of an index are opened with it
        for index in indices:
            yield from index_faults(index)
            there -= {index, *_shards(index)}
    yield from files_faults(sorted(there))


def _shards(index: Path) -> list[Path]:
    try:
        return [index.with_name(name) for name in read_index(index)]
    except DataError:  # reported by `index_faults`
        return []


def _complete(entry: Locked) -> str:
    unknown = sum(digest is None for digest in entry.files.values())
    return (
        f"all {len(entry.files)} files of {entry.repo} are there ('srpo fetch' checks their digests; {unknown} have no "
        "digest yet)"
    )
